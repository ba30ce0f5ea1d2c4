//! `tidemill completions`: a shell's completion script, made from the command line's own description.

use clap::CommandFactory;

use crate::arguments::{Arguments, Completions};
use crate::failure::Failure;
use crate::print;

pub(crate) fn completions(options: &Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(
        options.shell,
        &mut Arguments::command(),
        "tidemill",
        &mut script,
    );
    print::text(String::from_utf8_lossy(&script).trim_end())
}
