//! `tidemill inspect`: what a module contains, without a cluster: checked, compiled and described in this process as
//! a JobManager would.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tidemill_abi::{
    ConnectorSpec, DescribeRequest, JobGraph, Output, Partitioning, Stage, StageInput,
};
use tidemill_config::Config;
use tidemill_runtime::{
    Engine, EngineOptions, InstanceLimits, ModuleLimits, ModuleReport, PreparedModule,
    describe_job, prepare,
};

use super::Session;
use crate::arguments::Inspect;
use crate::failure::{Exit, Failure};
use crate::print::{self, Table};
use crate::units;

pub(crate) fn inspect(session: &Session, options: &Inspect) -> Result<(), Failure> {
    let path = &options.module;
    let wasm = fs::read(path).map_err(|error| {
        Failure::because(
            Exit::Usage,
            format!("the module {} cannot be read", path.display()),
            &error,
        )
        .help("`tidemill build` makes one and prints where it is")
    })?;
    let prepared = prepare(
        &wasm,
        &ModuleLimits {
            module_max_bytes: u64::MAX,
        },
    )
    .map_err(|error| {
        Failure::because(
            Exit::Failed,
            format!("{} cannot be a job", path.display()),
            &error,
        )
    })?;
    let graph = describe(&prepared, options)?;
    if session.is_json() {
        return print::json(&as_json(&prepared, &graph));
    }
    print::text(&as_text(&prepared, &graph))
}

fn describe(prepared: &PreparedModule, options: &Inspect) -> Result<JobGraph, Failure> {
    let limits = Config::default().jobmanager;
    let engine =
        Engine::new(EngineOptions::default()).map_err(|error| Failure::of(Exit::Failed, &error))?;
    let module = engine
        .compile(&prepared.bytes, None)
        .map_err(|error| Failure::of(Exit::Failed, &error))?;
    let request = DescribeRequest {
        parameters: options.parameters.parameters.iter().cloned().collect(),
        // Missing ones are listed instead of refused: that is what people inspect for.
        allow_missing_parameters: true,
    };
    let limits = InstanceLimits {
        memory_max_bytes: limits.describe_memory_max_bytes,
        call_deadline: Duration::from_millis(limits.describe_deadline_ms),
        ..InstanceLimits::default()
    };
    describe_job(&module, &request, limits).map_err(|error| Failure::of(Exit::Failed, &error))
}

fn as_text(prepared: &PreparedModule, graph: &JobGraph) -> String {
    let mut sections = vec![module_text(prepared), format!("Job {}", graph.name)];
    for (stage, index) in graph.stages.iter().zip(0u32..) {
        sections.push(stage_text(stage, index, graph));
    }
    let mut parameters = Table::new(&["PARAMETER", "IS", "DEFAULT"]);
    for parameter in &graph.parameters {
        let default = parameter
            .default
            .clone()
            .unwrap_or_else(|| "none: it must be given".to_owned());
        parameters.row([parameter.name.clone(), parameter.kind.clone(), default]);
    }
    sections.push(parameters.rendered("It reads no parameters"));
    let mut exports = Table::new(&["EXPORT", "IS"]);
    for export in &prepared.report.exports {
        exports.row([export.name.clone(), export.kind.clone()]);
    }
    sections.push(exports.rendered("It exports nothing"));
    sections.join("\n\n")
}

fn module_text(prepared: &PreparedModule) -> String {
    let report = &prepared.report;
    let maximum = report
        .memory
        .maximum_bytes
        .map_or_else(|| "as the cluster allows".to_owned(), units::bytes);
    let lines = [
        ("Module", prepared.hash().to_string()),
        ("ABI", report.abi_version.to_string()),
        (
            "Size",
            format!(
                "{} ({} code in {}, {} data)",
                units::bytes(report.size_bytes),
                units::bytes(report.code_bytes),
                units::counted(u64::from(report.functions), "function"),
                units::bytes(report.data_bytes),
            ),
        ),
        (
            "Memory",
            format!(
                "{} at first, at most {maximum}",
                units::bytes(report.memory.initial_bytes)
            ),
        ),
        ("State", state_text(report)),
        (
            "Imports",
            if report.imports.is_empty() {
                "none".to_owned()
            } else {
                report.imports.join(", ")
            },
        ),
    ];
    lines
        .map(|(label, value)| format!("{:<9}{value}", format!("{label}:")))
        .join("\n")
}

fn state_text(report: &ModuleReport) -> String {
    let changing = report
        .tables
        .iter()
        .filter(|table| !table.is_static)
        .count();
    format!(
        "memory, {}, {changing} of {}",
        units::counted(report.mutable_globals.len() as u64, "mutable global"),
        units::counted(report.tables.len() as u64, "table")
    )
}

fn stage_text(stage: &Stage, index: u32, graph: &JobGraph) -> String {
    let mut text = format!("Stage {index}: {}", stage.name);
    if let Some(parallelism) = stage.parallelism {
        write!(text, " (parallelism {parallelism})").expect("writing to a string never fails");
    }
    let mut line = |line: String| {
        text.push_str("\n  ");
        text.push_str(&line);
    };
    match &stage.input {
        StageInput::Edges => {}
        StageInput::Guest => line("reads from a source of its own".to_owned()),
        StageInput::Connector(connector) => {
            line(format!("reads from {}", connector_text(connector)))
        }
    }
    for operator in &stage.operators {
        let state = match (operator.portable_state, operator.closure_state) {
            (_, true) => ", whose state only images hold",
            (true, false) => ", with portable state",
            (false, false) => "",
        };
        line(format!("{} ({}){state}", operator.id, operator.kind));
    }
    for output in &stage.outputs {
        line(match output {
            Output::Edge {
                to, partitioning, ..
            } => {
                let name = graph
                    .stages
                    .get(*to as usize)
                    .map_or("?", |stage| stage.name.as_str());
                format!(
                    "sends to stage {to} ({name}), {}",
                    partitioning_text(*partitioning)
                )
            }
            Output::Sink(connector) => format!("writes to {}", connector_text(connector)),
        });
    }
    text
}

fn connector_text(connector: &ConnectorSpec) -> String {
    let options = connector
        .options
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    let options = options.collect::<Vec<_>>().join(", ");
    if options.is_empty() {
        connector.kind.clone()
    } else {
        format!("{} ({options})", connector.kind)
    }
}

fn partitioning_text(partitioning: Partitioning) -> &'static str {
    match partitioning {
        Partitioning::Forward => "task by task",
        Partitioning::Hash => "by the hash of the key",
        Partitioning::Rebalance => "in turn",
        Partitioning::Broadcast => "each record to every task",
    }
}

fn as_json(prepared: &PreparedModule, graph: &JobGraph) -> Value {
    let report = &prepared.report;
    let exports = report
        .exports
        .iter()
        .map(|export| json!({ "name": export.name, "kind": export.kind }));
    let globals = report
        .mutable_globals
        .iter()
        .map(|global| json!({ "index": global.index, "kind": global.kind }));
    let tables = report.tables.iter().map(|table| {
        json!({ "index": table.index, "initial": table.initial, "maximum": table.maximum, "static": table.is_static })
    });
    json!({
        "module": {
            "hash": prepared.hash().to_string(),
            "abi_version": report.abi_version,
            "size_bytes": report.size_bytes,
            "code_bytes": report.code_bytes,
            "data_bytes": report.data_bytes,
            "functions": report.functions,
            "memory_initial_bytes": report.memory.initial_bytes,
            "memory_maximum_bytes": report.memory.maximum_bytes,
            "mutable_globals": globals.collect::<Vec<_>>(),
            "tables": tables.collect::<Vec<_>>(),
            "imports": report.imports,
            "exports": exports.collect::<Vec<_>>(),
        },
        "graph": graph,
    })
}
