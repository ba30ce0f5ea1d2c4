//! The toolchain of this very machine compiles a crate that needs its host too: a build script and a
//! procedural macro. It never asks a registry for anything.

use std::fs;
use std::path::Path;

use tidemill_toolchain::{BuildError, BuildOptions, ensure};

const WORKSPACE: &[(&str, &str)] = &[
    (
        "Cargo.toml",
        r#"
[package]
name = "sample-job"
version = "0.0.0"
edition = "2024"
build = "build.rs"
[lib]
crate-type = ["cdylib", "rlib"]
[dependencies]
sample-macro = { path = "macro" }
[workspace]
[profile.release]
lto = "fat"
"#,
    ),
    (
        "build.rs",
        "fn main() { println!(\"cargo::rustc-env=SAMPLE=from the build script\"); }\n",
    ),
    (
        "src/lib.rs",
        r#"
use std::collections::BTreeMap;

#[sample_macro::exported]
pub fn a_function_with_a_name(count: u32) -> u32 {
    let mut lengths = BTreeMap::new();
    for number in 0..count {
        *lengths.entry(format!("{number} {}", env!("SAMPLE")).len()).or_insert(0) += 1;
    }
    a_helper_that_is_not_exported(lengths.values().copied().max().unwrap_or_default())
}

#[inline(never)]
fn a_helper_that_is_not_exported(value: u32) -> u32 {
    assert!(value < 1_000_000, "{value} is too much");
    value
}
"#,
    ),
    (
        "macro/Cargo.toml",
        "[package]\nname = \"sample-macro\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[lib]\nproc-macro = true\n",
    ),
    (
        "macro/src/lib.rs",
        r##"
use proc_macro::TokenStream;

#[proc_macro_attribute]
pub fn exported(_: TokenStream, item: TokenStream) -> TokenStream {
    let item = item.to_string().replacen("fn", "extern \"C\" fn", 1);
    format!("#[unsafe(no_mangle)] {item}").parse().expect("the item is still Rust")
}
"##,
    ),
];

fn write_workspace(directory: &Path) {
    for (name, text) in WORKSPACE {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().expect("files are in directories"))
            .expect("a directory is made");
        fs::write(path, text).expect("a file is written");
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

#[test]
fn a_crate_with_macro_and_build_script_becomes_a_module_with_names() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    write_workspace(directory.path());
    let toolchain = ensure(&|line| eprintln!("{line}")).expect("this machine can compile to Wasm");
    let mut options = BuildOptions::new(directory.path().join("Cargo.toml"));
    options.target_directory = Some(directory.path().join("elsewhere"));
    options.quiet = true;

    let modules = toolchain.cargo_build(&options).expect("the crate compiles");
    let [module] = modules.as_slice() else {
        panic!("one module, not {modules:?}")
    };
    assert!(
        module.starts_with(directory.path().join("elsewhere")),
        "{}",
        module.display()
    );
    assert_eq!(module.file_name(), Some("sample_job.wasm".as_ref()));
    let bytes = fs::read(module).expect("the module can be read");
    assert!(bytes.starts_with(b"\0asm"));
    assert!(
        contains(&bytes, "a_function_with_a_name"),
        "the export is there"
    );
    assert!(
        contains(&bytes, "a_helper_that_is_not_exported"),
        "the name section is kept"
    );

    // Nothing has changed: the module is named again all the same.
    assert_eq!(
        toolchain.cargo_build(&options).expect("the crate is fresh"),
        modules
    );

    options.rustflags = vec![
        "--cfg=nothing_reads_this".to_owned(),
        "-Dwarnings".to_owned(),
    ];
    options.profile = "no-such-profile".to_owned();
    let error = toolchain
        .cargo_build(&options)
        .expect_err("there is no such profile");
    assert!(matches!(error, BuildError::Failed(_)), "{error}");
}

#[test]
fn a_crate_that_makes_no_module_is_told_how() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    write_workspace(directory.path());
    let toolchain = ensure(&|line| eprintln!("{line}")).expect("this machine can compile to Wasm");
    let mut options = BuildOptions::new(directory.path().join("macro/Cargo.toml"));
    options.target_directory = Some(directory.path().join("elsewhere"));
    options.quiet = true;
    let error = toolchain
        .cargo_build(&options)
        .expect_err("a macro is no job")
        .to_string();
    assert!(error.contains("crate-type = [\"cdylib\"]"), "{error}");
}
