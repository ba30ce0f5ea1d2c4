//! Machines of every kind, made of shell scripts in a temporary directory, and how far each one climbs.
//!
//! Only the programs are pretended: processes, files, locks and renames are real. Nothing outside the
//! temporary directory is touched.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use super::*;

/// A machine in a directory of its own: the user's compiler without the target, and nothing else.
struct Machine {
    directory: tempfile::TempDir,
    host: Host,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = directory.path();
        let host = Host {
            rustc: root.join("user/bin/rustc"),
            cargo: root.join("bin/cargo"),
            rustup: None,
            rustup_timeout: Duration::from_secs(30),
            system_rustc: root.join("system/bin/rustc"),
            apt_get: None,
            program_directories: vec![root.join("bin")],
            cache_directory: Some(root.join("cache")),
        };
        let machine = Self { directory, host };
        machine.compiler("user", "1.95.0");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes an executable script. Another process writes it: a file that this process holds open
    /// while a sibling thread forks could not be executed.
    fn script(&self, name: &str, body: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("scripts are in directories"))
            .expect("a directory is made");
        let mut command = Command::new("/bin/sh");
        command.args([
            "-c",
            "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod +x \"$0\"",
        ]);
        process::output_of(command.arg(&path).arg(body)).expect("a script is written");
    }

    fn touch(&self, name: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("files are in directories"))
            .expect("a directory is made");
        fs::write(path, "").expect("a file is written");
    }

    fn compiler(&self, name: &str, release: &str) {
        let sysroot = self.path(name);
        let version =
            format!("rustc {release}\\ncommit-hash: 0123456789abcdef\\nrelease: {release}\\n");
        let body = format!(
            "[ \"$1\" = -vV ] && printf '{version}' || echo '{}'",
            sysroot.display()
        );
        self.script(&format!("{name}/bin/rustc"), &body);
    }

    fn source(&self, compiler: &str) {
        self.touch(&format!(
            "{compiler}/lib/rustlib/src/rust/library/std/Cargo.toml"
        ));
    }

    /// A cargo that "builds" a standard library and counts how often it did.
    fn cargo(&self) {
        let body = format!(
            r#"
            for target; do :; done
            out="$target/{TARGET}/release/deps"; mkdir -p "$out"
            echo run >> '{count}'
            for name in core alloc std panic_abort; do
                echo "$RUSTC" > "$out/lib$name-1.rlib"
                echo '{{"reason":"compiler-artifact","target":{{"name":"'$name'"}},"filenames":["'$out/lib$name-1.rlib'"]}}'
            done
            echo '   Compiling std v0.0.0 (/somewhere)' >&2"#,
            count = self.path("builds").display(),
        );
        self.script("bin/cargo", &body);
    }

    fn builds(&self) -> usize {
        fs::read_to_string(self.path("builds")).map_or(0, |text| text.lines().count())
    }

    /// A system compiler with its source, a linker and a cargo.
    fn with_system_compiler() -> Self {
        let machine = Self::new();
        machine.compiler("system", "1.96.0");
        machine.source("system");
        machine.touch("bin/wasm-ld-19");
        machine.cargo();
        machine
    }

    fn climb(&self) -> Result<WasmToolchain, ToolchainError> {
        climb(&self.host, self.directory.path(), &|_| {})
    }

    /// The sysroots in the cache, with whatever else lies there.
    fn cached(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path("cache/wasm-std"))
            .into_iter()
            .flatten();
        entries
            .map(|entry| {
                entry
                    .expect("the cache is readable")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect()
    }

    fn tried(&self) -> Vec<String> {
        match self.climb() {
            Err(ToolchainError::Unavailable { tried }) => tried,
            other => panic!("expected every step to fail: {other:?}"),
        }
    }
}

const TARGET_LIBRARIES: &str = "lib/rustlib/wasm32-unknown-unknown/lib";

#[test]
fn an_installed_target_is_used_as_it_is() {
    let machine = Machine::with_system_compiler();
    for library in ["libcore-1.rlib", "liballoc-1.rlib", "libstd-1.rlib"] {
        machine.touch(&format!("user/{TARGET_LIBRARIES}/{library}"));
    }
    let toolchain = machine.climb().expect("the target is installed");
    assert_eq!(
        (toolchain.rustc, toolchain.sysroot, toolchain.linker),
        (None, None, None)
    );
    assert_eq!(machine.builds(), 0);
    assert!(
        !machine.path("cache").exists(),
        "nothing is written when nothing is missing"
    );
}

#[test]
fn rustup_adds_the_target_when_it_can() {
    let mut machine = Machine::with_system_compiler();
    let libraries = machine.path("user").join(TARGET_LIBRARIES);
    let body = format!(
        "mkdir -p '{0}' && cd '{0}' && touch libcore-1.rlib liballoc-1.rlib libstd-1.rlib",
        libraries.display()
    );
    machine.script("bin/rustup", &body);
    machine.host.rustup = Some(machine.path("bin/rustup"));
    let toolchain = machine.climb().expect("rustup adds the target");
    assert_eq!(toolchain.rustc, None);
    assert_eq!(machine.builds(), 0);
}

#[test]
fn without_a_network_the_system_compiler_builds_its_library_once() {
    let mut machine = Machine::with_system_compiler();
    machine.script("bin/rustup", "echo 'error: could not download' >&2; exit 1");
    machine.host.rustup = Some(machine.path("bin/rustup"));
    let said = RefCell::new(Vec::new());
    let first = climb(&machine.host, machine.directory.path(), &|line| {
        said.borrow_mut().push(line.to_owned())
    })
    .expect("the system compiler serves");
    assert_eq!(first.rustc, Some(machine.path("system/bin/rustc")));
    assert_eq!(first.linker, Some(machine.path("bin/wasm-ld-19")));
    let sysroot = first.sysroot.clone().expect("a sysroot was made");
    assert!(
        sysroot
            .join(TARGET_LIBRARIES)
            .join("libstd-1.rlib")
            .is_file()
    );
    assert!(
        said.borrow().contains(&"Compiling std v0.0.0".to_owned()),
        "{said:?}"
    );

    // The second time neither rustup nor cargo is asked.
    machine.script("bin/rustup", "exit 99");
    assert_eq!(machine.climb().expect("it is still there"), first);
    assert_eq!(machine.builds(), 1);
    assert_eq!(
        machine.cached().len(),
        1,
        "no work directory is left: {:?}",
        machine.cached()
    );
}

#[test]
fn rustup_that_hangs_is_given_up() {
    let mut machine = Machine::with_system_compiler();
    machine.script("bin/rustup", "exec sleep 60");
    machine.host.rustup = Some(machine.path("bin/rustup"));
    machine.host.rustup_timeout = Duration::from_millis(100);
    assert!(
        machine
            .climb()
            .expect("the next step serves")
            .sysroot
            .is_some()
    );
}

#[test]
fn what_a_killed_build_left_is_not_used() {
    let machine = Machine::with_system_compiler();
    let sysroot = machine
        .climb()
        .expect("the library is built")
        .sysroot
        .expect("into a sysroot");
    let library = sysroot.join(TARGET_LIBRARIES).join("libcore-1.rlib");

    fs::write(&library, "cut").expect("a library is damaged");
    machine.touch("cache/wasm-std/work-1.96.0-012345678-r1/target/rubbish");
    machine.touch("cache/wasm-std/staging-1.96.0-012345678-r1/rubbish");
    assert_eq!(
        machine.climb().expect("it is built again").sysroot,
        Some(sysroot.clone())
    );
    assert_eq!(machine.builds(), 2);
    assert_ne!(
        fs::read_to_string(&library).expect("the library is there"),
        "cut"
    );
    assert_eq!(machine.cached().len(), 1, "{:?}", machine.cached());

    fs::remove_file(sysroot.join("tidemill-stamp")).expect("the stamp is removed");
    machine.climb().expect("it is built again");
    assert_eq!(machine.builds(), 3);
}

#[test]
fn another_compiler_gets_a_library_of_its_own() {
    let machine = Machine::with_system_compiler();
    let first = machine.climb().expect("the library is built").sysroot;
    machine.compiler("system", "1.97.0");
    let second = machine.climb().expect("the library is built").sysroot;
    assert_ne!(first, second);
    assert_eq!(machine.builds(), 2);
}

#[test]
fn concurrent_callers_build_once() {
    let machine = Machine::with_system_compiler();
    let (host, directory) = (&machine.host, machine.directory.path());
    let found: Vec<_> = thread::scope(|scope| {
        let callers: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| climb(host, directory, &|_| {})))
            .collect();
        callers
            .into_iter()
            .map(|caller| {
                caller
                    .join()
                    .expect("no caller panics")
                    .expect("each gets a toolchain")
            })
            .collect()
    });
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(machine.builds(), 1);
}

#[test]
fn root_installs_the_packages_that_are_missing() {
    let mut machine = Machine::new();
    machine.cargo();
    let ready = Machine::with_system_compiler();
    let body = format!(
        "[ \"$1\" = update ] && exit 0; [ \"$1\" = install ] || exit 1
        cp -R '{}/system' '{}'; cp '{}' '{}'",
        ready.directory.path().display(),
        machine.directory.path().display(),
        ready.path("bin/wasm-ld-19").display(),
        machine.path("bin").display(),
    );
    machine.script("bin/apt-get", &body);
    assert!(
        machine
            .tried()
            .iter()
            .any(|reason| reason.contains("rustc-web, rust-web-src, lld-19"))
    );
    assert!(
        !machine.path("system").exists(),
        "without the right nothing is installed"
    );

    machine.host.apt_get = Some(machine.path("bin/apt-get"));
    let toolchain = machine.climb().expect("the packages serve");
    assert!(toolchain.sysroot.is_some());
}

#[test]
fn a_machine_with_nothing_says_what_was_tried_and_what_to_do() {
    let mut machine = Machine::new();
    machine.host.cache_directory = None;
    let error = machine.climb().expect_err("there is no way").to_string();
    for part in [
        "has no standard library in",
        "no source of its standard library",
        "there is no system compiler at",
        "rustup is not installed",
        "not root",
        "rustup target add wasm32-unknown-unknown",
        "apt-get install --no-install-recommends rustc-web rust-web-src lld-19",
        "rustup component add rust-src",
    ] {
        assert!(error.contains(part), "`{part}` is missing in:\n{error}");
    }
}

#[test]
fn an_old_compiler_and_a_missing_linker_are_named() {
    let machine = Machine::with_system_compiler();
    machine.compiler("system", "1.63.0");
    assert!(
        machine
            .tried()
            .iter()
            .any(|reason| reason.contains("is 1.63.0, older than"))
    );

    machine.compiler("system", "1.96.0");
    fs::remove_file(machine.path("bin/wasm-ld-19")).expect("the linker is removed");
    assert!(
        machine
            .tried()
            .iter()
            .any(|reason| reason.contains("no wasm-ld is in PATH"))
    );
    assert_eq!(machine.builds(), 0, "nothing is built in vain");
}

#[test]
fn a_build_that_fails_is_reported_with_its_last_words() {
    let machine = Machine::with_system_compiler();
    machine.script(
        "bin/cargo",
        "echo 'error: no space left on device' >&2; exit 101",
    );
    assert!(
        machine
            .tried()
            .iter()
            .any(|reason| reason.contains("no space left on device"))
    );
    machine.script("bin/cargo", "exit 0");
    assert!(
        machine
            .tried()
            .iter()
            .any(|reason| reason.contains("made no `core` library"))
    );
    assert!(
        machine.climb().is_err(),
        "a build without libraries leaves nothing to be found"
    );
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let mut machine = Machine::with_system_compiler();
    machine.touch("file");
    machine.host.cache_directory = Some(machine.path("file/cache"));
    let error = machine.climb().expect_err("there is no place").to_string();
    assert!(
        error.contains("file/cache") && error.contains("TIDEMILL_CACHE_DIR"),
        "{error}"
    );
}
