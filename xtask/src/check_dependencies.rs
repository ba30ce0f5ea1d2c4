//! `cargo xtask check-dependencies`: words know nothing, decisions know words, hands know only words,
//! and each outside system is named by one crate.
//!
//! It never guesses: a crate of the workspace that the tables below don't know is a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::workspace::Workspace;

/// What a crate is for, and so whom it may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Ids, graph types, messages: `no_std`, no IO.
    Words,
    /// State machines: `no_std`, no IO.
    Decisions,
    /// One outside system each.
    Hands,
    /// A process: joins decisions to hands.
    Body,
    /// The binary with all processes in it.
    Binary,
    /// The guest SDK's macros: compiled for the compiler.
    Macros,
    /// What job authors import.
    Guest,
    /// A job.
    Example,
    /// Decisions in a simulated world.
    Simulator,
    /// End-to-end tests.
    Harness,
    /// What tests alone use: it starts other people's servers and knows nothing of ours.
    Prop,
    /// Micro-benchmarks.
    Bench,
    /// This program.
    Tool,
}

/// Every crate of the workspace but the examples, which are known by their directory.
const ROLES: &[(&str, Role)] = &[
    ("tidemill-protocol", Role::Words),
    ("tidemill-abi", Role::Words),
    ("tidemill-core", Role::Decisions),
    ("tidemill-transport", Role::Hands),
    ("tidemill-coordination", Role::Hands),
    ("tidemill-storage", Role::Hands),
    ("tidemill-runtime", Role::Hands),
    ("tidemill-connectors", Role::Hands),
    ("tidemill-config", Role::Hands),
    ("tidemill-toolchain", Role::Hands),
    ("tidemill-jobmanager", Role::Body),
    ("tidemill-taskmanager", Role::Body),
    ("tidemill-cli", Role::Binary),
    ("tidemill-macros", Role::Macros),
    ("tidemill", Role::Guest),
    ("tidemill-simulator", Role::Simulator),
    ("tidemill-tests", Role::Harness),
    ("tidemill-object-server", Role::Prop),
    ("tidemill-zookeeper-ensemble", Role::Prop),
    ("tidemill-benches", Role::Bench),
    ("xtask", Role::Tool),
];

/// Outside crates that only some may name, with all the crates whose names begin so.
const OWNED: &[(&str, &[&str])] = &[
    ("wasmtime", &["tidemill-runtime"]),
    ("quinn", &["tidemill-transport"]),
    ("object_store", &["tidemill-storage", "tidemill-connectors"]),
    ("redb", &["tidemill-coordination"]),
    ("reqwest", &["tidemill-storage"]),
    ("s3s", &["tidemill-object-server"]),
    ("zookeeper", &["tidemill-coordination"]),
];

/// All that words and decisions may reach, however far: none of it does IO.
const PURE: &[&str] = &[
    "bytes",
    "cobs",
    "embedded-io",
    "postcard",
    "serde",
    "serde_core",
    "thiserror",
];

/// All that this program may name, so that it compiles in seconds.
const TOOL_MAY_NAME: &[&str] = &[
    "anyhow",
    "clap",
    "libc",
    "serde_json",
    "tidemill-toolchain",
    "tidemill-zookeeper-ensemble",
];

impl Role {
    /// The roles of the workspace's crates that a crate of this role may depend on, and the same in a
    /// sentence.
    fn may_know(self) -> (&'static [Self], &'static str) {
        match self {
            Self::Words => (&[Self::Words], "words know only words"),
            Self::Decisions => (&[Self::Words], "decisions know only words"),
            Self::Hands => (
                &[Self::Words],
                "hands know only words, not decisions nor each other",
            ),
            Self::Body => (
                &[Self::Words, Self::Decisions, Self::Hands],
                "a body joins decisions to hands and knows no other body",
            ),
            Self::Binary => (
                &[Self::Words, Self::Decisions, Self::Hands, Self::Body],
                "the binary is made of bodies",
            ),
            Self::Macros => (
                &[Self::Words, Self::Guest],
                "macros know only words, and in their tests the SDK that re-exports them",
            ),
            Self::Guest => (
                &[Self::Words, Self::Macros],
                "a guest knows words and its macros",
            ),
            Self::Example => (
                &[Self::Guest],
                "a job imports the SDK and nothing else of ours",
            ),
            Self::Simulator => (
                &[Self::Words, Self::Decisions],
                "the simulator runs decisions in a world of its own, without hands",
            ),
            Self::Harness => (
                &[Self::Words, Self::Hands, Self::Guest, Self::Prop],
                "end-to-end tests see processes, not their insides",
            ),
            Self::Prop => (&[], "a prop of tests knows nothing of ours"),
            Self::Bench => (
                &[Self::Words, Self::Hands, Self::Guest, Self::Example],
                "a micro-benchmark runs one hand or one job, never a cluster",
            ),
            Self::Tool => (
                &[Self::Hands, Self::Prop],
                "xtask knows only the toolchain, and how ZooKeeper is started",
            ),
        }
    }
}

/// Prints what is wrong and fails if anything is.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    // One platform: what another would add (Windows bindings and the like) is never compiled here.
    let metadata = workspace.metadata(&["--filter-platform=x86_64-unknown-linux-gnu"])?;
    let graph = Graph::read(&metadata, workspace.root())?;
    let mut violations = graph.violations();
    for (name, member) in &graph.members {
        if matches!(member.role, Some(Role::Words | Role::Decisions)) {
            let directory = Path::new(&member.manifest)
                .parent()
                .unwrap_or(Path::new(""));
            violations.extend(std_in(name, &workspace.root().join(directory))?);
        }
    }
    for violation in &violations {
        eprintln!("{violation}");
    }
    match violations.len() {
        0 => Ok(()),
        count => bail!("{count} dependencies are against the rules"),
    }
}

/// A crate of the workspace.
#[derive(Debug)]
struct Member {
    role: Option<Role>,
    /// Its manifest, relative to the workspace.
    manifest: String,
    /// The packages it names, of every kind (normal, build, dev).
    names: BTreeSet<String>,
    /// Those of them that it names for its tests alone.
    names_for_tests: BTreeSet<String>,
    /// The packages it reaches by normal dependencies, without those that run in the compiler.
    reaches: BTreeSet<String>,
}

/// Who depends on whom.
struct Graph {
    members: BTreeMap<String, Member>,
}

impl Graph {
    fn read(metadata: &Value, root: &Path) -> anyhow::Result<Self> {
        let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
        let packages = metadata["packages"]
            .as_array()
            .context("no packages in cargo metadata")?;
        let member_ids: BTreeSet<String> = list(&metadata["workspace_members"])
            .iter()
            .map(text)
            .collect();
        let runs_in_compiler = |package: &Value| {
            list(&package["targets"]).iter().any(|target| {
                list(&target["kind"])
                    .iter()
                    .any(|kind| kind == "proc-macro")
            })
        };
        let names: BTreeMap<String, Option<String>> = packages
            .iter()
            .map(|package| {
                let name = (!runs_in_compiler(package)).then(|| text(&package["name"]));
                (text(&package["id"]), name)
            })
            .collect();
        let mut edges: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let normal = list(&node["deps"]).into_iter().filter(|dependency| {
                list(&dependency["dep_kinds"])
                    .iter()
                    .any(|kind| kind["kind"].is_null())
            });
            let targets = normal.map(|dependency| text(&dependency["pkg"])).collect();
            edges.insert(text(&node["id"]), targets);
        }

        let mut members = BTreeMap::new();
        for package in packages
            .iter()
            .filter(|package| member_ids.contains(&text(&package["id"])))
        {
            let name = text(&package["name"]);
            let path = text(&package["manifest_path"]);
            let manifest = path
                .trim_start_matches(&root.display().to_string())
                .trim_start_matches('/');
            let named = list(&package["dependencies"]);
            let (for_tests, others): (Vec<&Value>, Vec<&Value>) = named
                .iter()
                .partition(|dependency| dependency["kind"] == "dev");
            let names_of = |dependencies: &[&Value]| -> BTreeSet<String> {
                let names = dependencies.iter().map(|dependency| &dependency["name"]);
                names.map(text).collect()
            };
            let (for_tests, others) = (names_of(&for_tests), names_of(&others));
            members.insert(
                name.clone(),
                Member {
                    role: role_of(&name, manifest),
                    manifest: manifest.to_owned(),
                    names: for_tests.union(&others).cloned().collect(),
                    names_for_tests: for_tests.difference(&others).cloned().collect(),
                    reaches: reach(&text(&package["id"]), &edges, &names),
                },
            );
        }
        Ok(Self { members })
    }

    /// Every breach of the rules, as a line that says who, where, what and why not.
    fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, member) in &self.members {
            let mut report =
                |what: String| found.push(format!("{name} ({}): {what}", member.manifest));
            let Some(role) = member.role else {
                report(
                    "is in no table: give it a role in xtask/src/check_dependencies.rs".to_owned(),
                );
                continue;
            };
            let (may_know, rule) = role.may_know();
            for known in member.names.iter().filter(|known| *known != name) {
                let other = self.members.get(known).and_then(|other| other.role);
                let is_prop_of_tests =
                    other == Some(Role::Prop) && member.names_for_tests.contains(known);
                if other.is_some_and(|other| !may_know.contains(&other)) && !is_prop_of_tests {
                    report(format!("depends on {known}, but {rule}"));
                }
                for (prefix, owners) in OWNED {
                    if known.starts_with(prefix) && !owners.contains(&name.as_str()) {
                        report(format!(
                            "depends on {known}, which only {} may",
                            owners.join(", ")
                        ));
                    }
                }
                if role == Role::Tool && !TOOL_MAY_NAME.contains(&known.as_str()) {
                    report(format!(
                        "depends on {known}, but xtask must compile in seconds"
                    ));
                }
            }
            if matches!(role, Role::Words | Role::Decisions) {
                let impure = member.reaches.iter().filter(|reached| {
                    !PURE.contains(&reached.as_str()) && !self.members.contains_key(*reached)
                });
                for reached in impure {
                    report(format!(
                        "reaches {reached}, which is not known to be free of IO"
                    ));
                }
            }
        }
        found
    }
}

fn role_of(name: &str, manifest: &str) -> Option<Role> {
    if manifest.starts_with("examples-wasm/") {
        return Some(Role::Example);
    }
    ROLES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, role)| *role)
}

/// The names of all packages behind `start`, whose own is left out. A package without a name runs in
/// the compiler, and so does all that is behind it.
fn reach(
    start: &str,
    edges: &BTreeMap<String, Vec<String>>,
    names: &BTreeMap<String, Option<String>>,
) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut waiting = vec![start];
    while let Some(id) = waiting.pop() {
        for next in edges.get(id).map(Vec::as_slice).unwrap_or_default() {
            if let Some(Some(name)) = names.get(next)
                && reached.insert(name.clone())
            {
                waiting.push(next);
            }
        }
    }
    reached
}

/// What in a crate's sources would let it name the standard library.
fn std_in(name: &str, directory: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let root = directory.join("src/lib.rs");
    let text =
        fs::read_to_string(&root).with_context(|| format!("cannot read {}", root.display()))?;
    if !text.lines().any(|line| line.trim() == "#![no_std]") {
        found.push(format!("{name} ({}): has no `#![no_std]`", root.display()));
    }
    let mut waiting = vec![directory.join("src")];
    while let Some(path) = waiting.pop() {
        let context = || format!("cannot read {}", path.display());
        if path.is_dir() {
            for entry in fs::read_dir(&path).with_context(context)? {
                waiting.push(entry?.path());
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(context)?;
            if let Some(line) = line_naming_std(&text) {
                found.push(format!(
                    "{name} ({}:{line}): has `extern crate std`",
                    path.display()
                ));
            }
        }
    }
    Ok(found)
}

/// The line, from 1, of an `extern crate std` that is not for tests alone.
fn line_naming_std(text: &str) -> Option<usize> {
    let mut before = "";
    for (index, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let names_std = words.windows(3).any(|three| {
            three[..2] == ["extern", "crate"] && three[2].trim_end_matches(';') == "std"
        });
        if names_std && !line.trim_start().starts_with("//") && before.trim() != "#[cfg(test)]" {
            return Some(index + 1);
        }
        before = line;
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The violations of a workspace in which each crate depends on the named ones. A name with a `!`
    /// is a procedural macro; a dependency with a `?` is for tests alone.
    fn check(crates: &[(&str, &[&str])]) -> Vec<String> {
        let ours = |name: &str| name.starts_with("tidemill") || name == "xtask" || name == "new";
        let packages: Vec<Value> = crates
            .iter()
            .map(|(name, dependencies)| {
                let kind = if name.ends_with('!') { "proc-macro" } else { "lib" };
                let named: Vec<Value> = dependencies
                    .iter()
                    .map(|name| match name.strip_suffix('?') {
                        Some(name) => json!({"name": name, "kind": "dev"}),
                        None => json!({"name": name}),
                    })
                    .collect();
                json!({
                    "id": name, "name": name, "manifest_path": format!("/root/at/{name}/Cargo.toml"),
                    "targets": [{"kind": [kind]}], "dependencies": named,
                })
            })
            .collect();
        let nodes: Vec<Value> = crates
            .iter()
            .map(|(name, dependencies)| {
                let edge = |name: &&str| json!({"pkg": name, "dep_kinds": [{"kind": null}]});
                json!({"id": name, "deps": dependencies.iter().map(edge).collect::<Vec<_>>()})
            })
            .collect();
        let members: Vec<&str> = crates
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| ours(name))
            .collect();
        let metadata = json!({"packages": packages, "workspace_members": members, "resolve": {"nodes": nodes}});
        Graph::read(&metadata, Path::new("/root"))
            .expect("the metadata is whole")
            .violations()
    }

    #[test]
    fn the_intended_shape_is_accepted() {
        let violations = check(&[
            ("tidemill-abi", &["serde"]),
            ("tidemill-protocol", &["tidemill-abi", "postcard"]),
            ("tidemill-core", &["tidemill-protocol"]),
            ("tidemill-runtime", &["tidemill-protocol", "wasmtime"]),
            (
                "tidemill-jobmanager",
                &["tidemill-core", "tidemill-runtime"],
            ),
            ("tidemill-cli", &["tidemill-jobmanager"]),
            ("serde", &["serde_derive!"]),
            ("serde_derive!", &["syn"]),
            ("syn", &[]),
            ("postcard", &["serde"]),
            ("wasmtime", &["libc"]),
            ("libc", &[]),
        ]);
        assert!(violations.is_empty(), "{violations:?}");
    }

    #[test]
    fn a_hand_that_knows_decisions_or_another_hand_is_named() {
        let violations = check(&[
            ("tidemill-core", &[]),
            ("tidemill-storage", &["tidemill-core"]),
            ("tidemill-runtime", &["tidemill-storage"]),
        ]);
        assert_eq!(violations.len(), 2, "{violations:?}");
        assert!(violations[0].starts_with(
            "tidemill-runtime (at/tidemill-runtime/Cargo.toml): depends on tidemill-storage, but hands"
        ));
        assert!(
            violations[1].starts_with("tidemill-storage"),
            "{violations:?}"
        );
    }

    #[test]
    fn io_is_found_however_far_from_the_core() {
        let violations = check(&[
            ("tidemill-protocol", &["bytes"]),
            ("tidemill-core", &["tidemill-protocol"]),
            ("bytes", &["socket2"]),
            ("socket2", &[]),
        ]);
        assert_eq!(violations.len(), 2, "{violations:?}");
        assert!(
            violations
                .iter()
                .all(|violation| violation.contains("reaches socket2"))
        );
    }

    #[test]
    fn an_outside_system_has_its_owner() {
        let violations = check(&[
            ("tidemill-jobmanager", &["quinn-proto"]),
            ("quinn-proto", &[]),
        ]);
        assert_eq!(violations.len(), 1, "{violations:?}");
        assert!(
            violations[0].contains("which only tidemill-transport may"),
            "{violations:?}"
        );
    }

    #[test]
    fn a_prop_is_for_tests_and_the_simulator_for_decisions() {
        let prop = "tidemill-zookeeper-ensemble";
        let violations = check(&[
            (prop, &[]),
            ("tidemill-coordination", &["tidemill-zookeeper-ensemble?"]),
            ("tidemill-tests", &[prop]),
            ("tidemill-core", &[]),
            ("tidemill-simulator", &["tidemill-core"]),
        ]);
        assert!(violations.is_empty(), "{violations:?}");
        let violations = check(&[
            (prop, &[]),
            ("tidemill-coordination", &[prop]),
            ("tidemill-simulator", &["tidemill-coordination"]),
        ]);
        assert_eq!(violations.len(), 2, "{violations:?}");
        assert!(
            violations[0].contains("hands know only words"),
            "{violations:?}"
        );
        assert!(violations[1].contains("without hands"), "{violations:?}");
    }

    #[test]
    fn an_unknown_crate_and_a_heavy_tool_are_refused() {
        let violations = check(&[("new", &[]), ("xtask", &["tokio"]), ("tokio", &[])]);
        assert_eq!(violations.len(), 2, "{violations:?}");
        assert!(violations[0].contains("is in no table"), "{violations:?}");
        assert!(
            violations[1].contains("compile in seconds"),
            "{violations:?}"
        );
    }

    #[test]
    fn only_tests_may_name_std() {
        assert_eq!(line_naming_std("//! Head.\nextern crate std;\n"), Some(2));
        assert_eq!(line_naming_std("#[cfg(test)]\nextern crate std;\n"), None);
        assert_eq!(
            line_naming_std("// extern crate std;\nextern crate alloc;\n"),
            None
        );
        assert_eq!(line_naming_std("pub extern crate std as other;\n"), Some(1));
    }
}
