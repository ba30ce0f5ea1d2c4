//! Holds `docs/abi.md` and the C header to what the crate does: every name is there, and the table of hashes is true.

use tidemill_abi::{ABI_VERSION, export, hash_bytes, import, key_group, task_of_key_group};

const HEADER: &str = include_str!("../include/tidemill_abi.h");
const DOCUMENT: &str = include_str!("../../../docs/abi.md");

#[test]
fn every_export_and_import_is_explained() {
    let names = export::FUNCTIONS.into_iter().chain([
        export::MEMORY,
        export::RECORDS,
        import::EMIT,
        import::LOG,
    ]);
    for name in names {
        assert!(
            DOCUMENT.contains(&format!("\n| `{name}` | ")),
            "docs/abi.md has no row for `{name}`"
        );
    }
}

#[test]
fn the_c_header_declares_every_function_and_number() {
    for name in export::FUNCTIONS.into_iter().chain([export::RECORDS]) {
        assert!(
            HEADER.contains(&format!("TIDEMILL_EXPORT({name})")),
            "{name} is not declared"
        );
    }
    for name in [import::EMIT, import::LOG] {
        assert!(
            HEADER.contains(&format!("TIDEMILL_IMPORT({name})")),
            "{name} is not declared"
        );
    }
    assert!(HEADER.contains(&format!("#define TIDEMILL_ABI_VERSION {ABI_VERSION}\n")));
}

#[test]
fn the_hashes_of_the_table_are_those_of_the_code() {
    let mut rows = 0;
    for line in DOCUMENT.lines() {
        let cells: Vec<&str> = line
            .split('|')
            .map(|cell| cell.trim_matches([' ', '`']))
            .collect();
        let [_, _, encoding, hash, group, subtask, _] = cells[..] else {
            continue;
        };
        let Ok(hash) = u64::from_str_radix(hash, 16) else {
            continue;
        };
        let bytes: Vec<u8> = (0..encoding.len() / 2)
            .map(|at| {
                u8::from_str_radix(&encoding[2 * at..2 * at + 2], 16)
                    .expect("the encoding is hexadecimal")
            })
            .collect();
        assert_eq!(hash_bytes(&bytes), hash, "{line}");
        assert_eq!(key_group(hash, 128).to_string(), group, "{line}");
        assert_eq!(
            task_of_key_group(key_group(hash, 128), 3, 128).to_string(),
            subtask,
            "{line}"
        );
        rows += 1;
    }
    assert_eq!(rows, 9);
}
