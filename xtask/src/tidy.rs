//! `cargo xtask tidy`: heads, lengths and leftovers of the source files.
//!
//! It never parses Rust; rustfmt's layout, which `lint` checks first, is enough to find a function.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::workspace::Workspace;

/// How many lines a file may have, without the tests at its end.
const FILE_LINES_MAX: usize = 600;

/// How many lines a function may have, from its signature to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

/// What must not be left in a file, and why. Written in two halves, or this file would contain them.
const LEFTOVERS: [(&str, &str); 5] = [
    (concat!("TO", "DO"), "do it, or file it"),
    (concat!("FIX", "ME"), "fix it, or file it"),
    (concat!("XX", "X"), "say what is meant"),
    (
        concat!("unimpl", "emented!"),
        "implement it, or return an error",
    ),
    (concat!("/wo", "rk/"), "it is a path of one machine"),
];

/// The files that are read as text, by their ends.
const TEXT_ENDS: [&str; 9] = [
    ".rs", ".toml", ".md", ".sh", ".c", ".h", ".wat", ".html", ".ci/run",
];

/// Prints what is wrong and fails if anything is.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let mut faults = Vec::new();
    for name in files(workspace.root())? {
        if !TEXT_ENDS.iter().any(|end| name.ends_with(end)) {
            continue;
        }
        let path = workspace.root().join(&name);
        // Removed, and not yet committed.
        if !path.exists() {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
        faults.extend(faults_in(&name, &text));
    }
    for fault in &faults {
        eprintln!("{fault}");
    }
    match faults.len() {
        0 => Ok(()),
        count => bail!("{count} places are untidy"),
    }
}

/// The files that git tracks or would add, relative to `root`.
fn files(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut command = Command::new("git");
    command.args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
    ]);
    let output = command
        .current_dir(root)
        .output()
        .context("cannot run git")?;
    ensure!(
        output.status.success(),
        "git ls-files failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let names = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
    Ok(names
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect())
}

/// Every fault of one file, as `file:line: what`.
fn faults_in(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut report = |line: usize, what: String| faults.push(format!("{name}:{line}: {what}"));
    for (index, line) in text.lines().enumerate() {
        for (word, instead) in LEFTOVERS {
            if contains_word(line, word) {
                report(index + 1, format!("contains `{word}`: {instead}"));
            }
        }
    }
    if !name.ends_with(".rs") {
        return faults;
    }
    // A fixture of a compile-fail test is quoted with its line numbers; it is an input, not a part.
    let is_input = name.starts_with("examples-wasm/") || name.contains("/tests/fail/");
    if !text.starts_with("//!") && !is_input {
        report(
            1,
            "does not open with `//!`: say what it is and what it never does".to_owned(),
        );
    }
    if is_test(name) {
        return faults;
    }
    let lines: Vec<&str> = text.lines().collect();
    let own = &lines[..tests_begin(&lines)];
    if own.len() > FILE_LINES_MAX {
        let what = format!(
            "{} lines, more than {FILE_LINES_MAX}: cut by concept",
            own.len()
        );
        report(FILE_LINES_MAX + 1, what);
    }
    for (first, length) in functions(own) {
        if length > FUNCTION_LINES_MAX {
            let what = format!("a function of {length} lines, more than {FUNCTION_LINES_MAX}");
            report(first + 1, what);
        }
    }
    faults
}

/// Whether `word` stands in `line` with neither letter nor digit before or behind it.
fn contains_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let behind = line[at + word.len()..].chars().next();
        // A word that ends in a sign is whole whatever follows.
        let open = word.ends_with(char::is_alphanumeric);
        let continues = open && behind.is_some_and(char::is_alphanumeric);
        !continues && !before.is_some_and(char::is_alphanumeric)
    })
}

/// Whether a file holds nothing but tests: one in a crate's `tests`, or a module of that name. The
/// crate `tests` has a library too, which is code like any other.
fn is_test(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    let in_tests = parts
        .windows(2)
        .any(|pair| pair[0] == "tests" && pair[1] != "src");
    in_tests || parts.last() == Some(&"tests.rs")
}

/// The index of the line where the tests at the file's end begin; the count of lines if there are none.
fn tests_begin(lines: &[&str]) -> usize {
    let is_module = |line: &&str| line.starts_with("mod ") || line.starts_with("pub(crate) mod ");
    (0..lines.len())
        .find(|&index| {
            lines[index] == "#[cfg(test)]" && lines.get(index + 1).is_some_and(is_module)
        })
        .unwrap_or(lines.len())
}

/// Index of the first line, and count of lines, of every function.
fn functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        if !is_signature(line.trim_start()) {
            continue;
        }
        let indentation = &line[..line.len() - line.trim_start().len()];
        let at_same_depth = |line: &&str| line.strip_prefix(indentation).map(str::to_owned);
        // The body ends, or a declaration without one does, at the signature's own depth.
        let last = lines[first..].iter().position(|line| {
            at_same_depth(line).is_some_and(|rest| {
                let is_declaration = !rest.starts_with(' ') && rest.ends_with(';');
                rest == "}" || is_declaration || (is_signature(&rest) && rest.ends_with('}'))
            })
        });
        found.push((first, last.map_or(lines.len() - first, |last| last + 1)));
    }
    found
}

/// Whether a line, without its indentation, begins a function.
fn is_signature(line: &str) -> bool {
    let mut words = line.split_whitespace().peekable();
    while let Some(word) = words.next() {
        match word {
            "fn" => return words.peek().is_some(),
            "const" | "async" | "unsafe" | "extern" | "default" => {}
            _ if word == "pub" || word.starts_with("pub(") || word.starts_with('"') => {}
            // The rest of `pub(in some::path)`.
            _ if word.ends_with(')') && !word.contains('(') => {}
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "//! A head.\n";

    fn function_of(lines: usize) -> String {
        format!("fn long() {{\n{}}}\n", "    step();\n".repeat(lines - 2))
    }

    #[test]
    fn every_source_file_but_a_job_has_a_head() {
        assert_eq!(faults_in("crates/a/src/lib.rs", "fn a() {}\n").len(), 1);
        assert_eq!(faults_in("crates/a/tests/a.rs", "fn a() {}\n").len(), 1);
        assert!(faults_in("examples-wasm/a/src/lib.rs", "fn a() {}\n").is_empty());
        assert!(faults_in("docs/abi.md", "No head.\n").is_empty());
    }

    #[test]
    fn leftovers_are_found_as_words_with_their_line() {
        for (word, _) in LEFTOVERS {
            let faults = faults_in("docs/a.md", &format!("fine\nsome {word} here\n"));
            assert_eq!(faults.len(), 1, "{word}");
            assert!(faults[0].starts_with("docs/a.md:2: "), "{faults:?}");
        }
        let harmless = format!(
            "mktemp /tmp/a.{0}{0}\nnet{1}x\n",
            LEFTOVERS[2].0, LEFTOVERS[4].0
        );
        assert!(faults_in("docs/a.md", &harmless).is_empty());
    }

    #[test]
    fn a_function_has_its_limit_unless_it_is_a_test() {
        let fits = format!("{HEAD}{}", function_of(FUNCTION_LINES_MAX));
        let long = format!("{HEAD}{}", function_of(FUNCTION_LINES_MAX + 1));
        assert!(faults_in("a/src/b.rs", &fits).is_empty());
        assert!(
            faults_in("a/src/b.rs", &long)[0].starts_with("a/src/b.rs:2: a function of 71 lines")
        );
        assert!(faults_in("tests/tests/all/b.rs", &long).is_empty());
        assert!(faults_in("a/src/b/tests.rs", &long).is_empty());
        assert_eq!(
            faults_in("tests/src/lib.rs", &long).len(),
            1,
            "the harness is code"
        );
        let tests = format!("{HEAD}fn a() {{}}\n\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
        assert!(faults_in("a/src/b.rs", &tests).is_empty());
    }

    #[test]
    fn a_file_has_its_limit_without_its_tests() {
        let lines = "// line\n".repeat(FILE_LINES_MAX - 1);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "// line\n".repeat(50));
        assert!(faults_in("a/src/b.rs", &format!("{HEAD}{lines}{tests}")).is_empty());
        let faults = faults_in("a/src/b.rs", &format!("{HEAD}{lines}// one more\n{tests}"));
        assert_eq!(faults.len(), 1);
        assert!(faults[0].contains(": 601 lines"), "{faults:?}");
    }

    #[test]
    fn functions_are_measured_from_signature_to_brace() {
        let text = "\
impl A {
    pub(crate) async fn one(
        self,
    ) -> B {
        if x {
        }
    }
    fn two(&self);
    unsafe extern \"C\" fn three() {}
    pub(in a::b) const fn four() -> u8 {
        4
    }
}
type F = fn(u8);
";
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(functions(&lines), [(1, 6), (7, 1), (8, 1), (9, 3)]);
    }
}
