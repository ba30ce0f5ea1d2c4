//! `tidemill build`: compiles jobs, with a toolchain that is found or made when none is there.

use std::path::Path;

use serde_json::json;
use tidemill_toolchain::{BuildOptions, ensure_for};

use super::Session;
use crate::arguments::Build;
use crate::failure::{Exit, Failure};
use crate::print;

pub(crate) fn build(session: &Session, options: &Build) -> Result<(), Failure> {
    let directory = options
        .manifest_path
        .parent()
        .filter(|path| !path.as_os_str().is_empty());
    let toolchain = ensure_for(directory.unwrap_or(Path::new(".")), &|line| {
        eprintln!("{line}")
    })
    .map_err(|error| Failure::of(Exit::Failed, &error))?;
    let mut wanted = BuildOptions::new(&options.manifest_path);
    wanted.packages.clone_from(&options.package);
    wanted.profile.clone_from(&options.profile);
    wanted.locked = options.locked;
    let modules = toolchain
        .cargo_build(&wanted)
        .map_err(|error| Failure::of(Exit::Failed, &error))?;
    if session.is_json() {
        return print::json(&json!({ "modules": modules }));
    }
    let paths: Vec<String> = modules
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    print::text(&paths.join("\n"))
}
