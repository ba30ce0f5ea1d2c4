//! `tidemill new`: a job's crate from templates that are part of this program.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Session;
use crate::arguments::New;
use crate::failure::{Exit, Failure};
use crate::print;

/// Each file of the crate: where it goes, and its template.
const TEMPLATES: [(&str, &str); 4] = [
    (
        "Cargo.toml",
        include_str!("../../templates/job/Cargo.toml.template"),
    ),
    (
        "src/lib.rs",
        include_str!("../../templates/job/src/lib.rs.template"),
    ),
    (
        "README.md",
        include_str!("../../templates/job/README.md.template"),
    ),
    (
        ".gitignore",
        include_str!("../../templates/job/gitignore.template"),
    ),
];

/// Names that cargo refuses, or that would hide what the job itself uses.
const RESERVED: [&str; 15] = [
    "tidemill",
    "serde",
    "test",
    "core",
    "std",
    "alloc",
    "proc-macro",
    "proc_macro",
    "build",
    "deps",
    "files",
    "generator",
    "print",
    "socket",
    "discard",
];

pub(crate) fn new(session: &Session, options: &New) -> Result<(), Failure> {
    check_name(&options.name)?;
    let directory = match options.parent.as_path() {
        here if here == Path::new(".") => PathBuf::from(&options.name),
        parent => parent.join(&options.name),
    };
    if directory.exists() {
        return Err(Failure::new(
            Exit::Failed,
            format!("{} exists already", directory.display()),
        )
        .help("choose another name, or another place with --in DIR"));
    }
    let sdk = sdk_dependency(options.sdk_path.as_deref())?;
    let files = render(&options.name, &sdk);
    write(&directory, &files)?;
    if session.is_json() {
        let paths: Vec<PathBuf> = files.iter().map(|(path, _)| directory.join(path)).collect();
        return print::json(
            &json!({ "name": options.name, "directory": directory, "files": paths }),
        );
    }
    print::text(&format!(
        "made the job {name} in {directory}\n\n  cd {directory}\n  cargo test\n  tidemill build\n  tidemill run --local \
         target/wasm32-unknown-unknown/release/{module}.wasm -p input=README.md -p output=counts",
        name = options.name,
        directory = directory.display(),
        module = options.name.replace('-', "_"),
    ))
}

fn check_name(name: &str) -> Result<(), Failure> {
    let is_word = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic());
    if is_word
        && begins_well
        && name.len() <= 64
        && !RESERVED.contains(&name)
        && !is_keyword(&name.replace('-', "_"))
    {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, format!("`{name}` cannot name a job's crate"))
        .help("use up to 64 letters, digits, `-` and `_`, beginning with a letter, that are no word of Rust's and no crate that the job uses"))
}

/// Words that cannot name the job's function.
fn is_keyword(word: &str) -> bool {
    const KEYWORDS: &str = "as async await break const continue crate dyn else enum extern false fn for gen if impl in let \
                            loop match mod move mut pub ref return self static struct super trait true type union unsafe \
                            use where while abstract become box do final macro override priv try typeof unsized virtual yield";
    KEYWORDS.split_whitespace().any(|keyword| keyword == word)
}

/// The line of the manifest that names the guest SDK: by path where one is given or this program was built from
/// a checkout that is still there, else by this program's own version.
fn sdk_dependency(given: Option<&Path>) -> Result<String, Failure> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-sdk");
    let Some(path) = given
        .map(Path::to_owned)
        .or_else(|| Some(checkout).filter(|path| path.exists()))
    else {
        return Ok(concat!("tidemill = \"", env!("CARGO_PKG_VERSION"), "\"").to_owned());
    };
    let path = fs::canonicalize(&path).map_err(|error| {
        Failure::because(
            Exit::Usage,
            format!("there is no guest SDK in {}", path.display()),
            &error,
        )
    })?;
    if !path.join("Cargo.toml").is_file() {
        return Err(Failure::new(Exit::Usage, format!("{} has no Cargo.toml", path.display()))
            .help("--sdk-path (or TIDEMILL_SDK_PATH) names the directory `guest-sdk` of Tidemill's source"));
    }
    let text = serde_json::to_string(&path.to_string_lossy()).unwrap_or_default();
    Ok(format!("tidemill = {{ path = {text} }}"))
}

fn render(name: &str, sdk: &str) -> Vec<(&'static str, String)> {
    let function = name.replace('-', "_");
    let fill = |template: &str| {
        template
            .replace("{{name}}", name)
            .replace("{{function}}", &function)
            .replace("{{sdk}}", sdk)
    };
    TEMPLATES
        .iter()
        .map(|(path, template)| (*path, fill(template)))
        .collect()
}

fn write(directory: &Path, files: &[(&str, String)]) -> Result<(), Failure> {
    for (path, text) in files {
        let path = directory.join(path);
        let parent = path.parent().unwrap_or(directory);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, text))
            .map_err(|error| {
                Failure::because(
                    Exit::Failed,
                    format!("{} cannot be written", path.display()),
                    &error,
                )
            })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_template_is_left_unfilled() {
        for (path, text) in render("my-job", "tidemill = \"0\"") {
            assert!(
                !text.contains("{{") && !text.contains("}}"),
                "{path}: {text}"
            );
        }
    }

    #[test]
    fn names_that_no_crate_or_function_can_have_are_refused() {
        for good in ["wordcount", "my-job", "a1_b"] {
            check_name(good).unwrap_or_else(|_| panic!("{good}"));
        }
        for bad in [
            "",
            "1job",
            "my job",
            "../x",
            "größe",
            "async",
            "tidemill",
            &"a".repeat(65),
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_that_is_no_sdk_is_refused() {
        assert!(sdk_dependency(Some(Path::new("/nowhere"))).is_err());
        let empty = tempfile::tempdir().expect("a temporary directory");
        assert!(sdk_dependency(Some(empty.path())).is_err());
    }
}
