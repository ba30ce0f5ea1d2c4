//! Whether what one job left is what another can begin from, as far as their graphs say: pure, and by name. A task's image
//! is its program's memory and its connectors' states, so all that shapes these must be the same. Where a sink writes to
//! does not: a file sink's state names the directories of what is prepared and not yet shown.

use std::collections::{BTreeMap, BTreeSet};

use tidemill_abi::{ConnectorSpec, JobGraph, Output, Stage, StageInput};

/// How many differences are listed; there may be more.
const LISTED_MAX: usize = 8;

/// The option of a sink that says where it writes to, by the sink's kind.
fn place_of(kind: &str) -> Option<&'static str> {
    match kind {
        "files" => Some("path"),
        "socket" => Some("address"),
        _ => None,
    }
}

/// What keeps a job with the graph `now` from going on where one with the graph `then` stopped, in words; nothing if
/// nothing does.
pub(crate) fn differences(then: &JobGraph, now: &JobGraph) -> Vec<String> {
    let mut found = Vec::new();
    if then.stages.len() != now.stages.len() {
        let (then, now) = (then.stages.len(), now.stages.len());
        found.push(format!("it had {then} stages, and has {now}"));
    }
    for (index, (then, now)) in then.stages.iter().zip(&now.stages).enumerate() {
        let in_stage = stage_differences(then, now);
        found.extend(
            in_stage
                .into_iter()
                .map(|what| format!("stage {index} ({}): {what}", now.name)),
        );
    }
    if found.len() > LISTED_MAX {
        let more = found.len() - LISTED_MAX;
        found.truncate(LISTED_MAX);
        found.push(format!("{more} more"));
    }
    found
}

fn stage_differences(then: &Stage, now: &Stage) -> Vec<String> {
    let mut found = Vec::new();
    if then.name != now.name {
        found.push(format!("it was called `{}`", then.name));
    }
    match (&then.input, &now.input) {
        (StageInput::Connector(then), StageInput::Connector(now)) => {
            found.extend(connector_differences("source", then, now, None));
        }
        (then, now) if then != now => found.push("its input was of another kind".to_owned()),
        _ => {}
    }
    if then.ports != now.ports {
        let (then, now) = (then.ports, now.ports);
        found.push(format!("it had {then} input ports, and has {now}"));
    }
    if then.parallelism != now.parallelism {
        let said = |one: Option<u32>| one.map_or("none of its own".to_owned(), |n| n.to_string());
        let (then, now) = (said(then.parallelism), said(now.parallelism));
        found.push(format!("its parallelism was {then}, and is {now}"));
    }
    found.extend(operator_differences(then, now));
    if then.outputs.len() != now.outputs.len() {
        let (then, now) = (then.outputs.len(), now.outputs.len());
        found.push(format!("it had {then} outputs, and has {now}"));
    }
    for (index, outputs) in then.outputs.iter().zip(&now.outputs).enumerate() {
        match outputs {
            (Output::Sink(then), Output::Sink(now)) => {
                let place = place_of(&now.kind);
                found.extend(connector_differences("sink", then, now, place));
            }
            (then, now) if then != now => {
                found.push(format!("output {index} went to another place"));
            }
            _ => {}
        }
    }
    found
}

fn operator_differences(then: &Stage, now: &Stage) -> Option<String> {
    if then.operators == now.operators {
        return None;
    }
    let named = |stage: &Stage| {
        let operators = stage.operators.iter();
        let named: Vec<String> = operators
            .map(|one| format!("{} ({})", one.id, one.kind))
            .collect();
        named.join(", ")
    };
    let (was, is) = (named(then), named(now));
    Some(match was == is {
        true => format!("its operators hold other state than they did: {is}"),
        false => format!("its operators were {was}, and are {is}"),
    })
}

/// `place` may differ.
fn connector_differences(
    what: &str,
    then: &ConnectorSpec,
    now: &ConnectorSpec,
    place: Option<&str>,
) -> Vec<String> {
    if then.kind != now.kind {
        return vec![format!(
            "its {what} was `{}`, and is `{}`",
            then.kind, now.kind
        )];
    }
    let kind = &now.kind;
    let said = |options: &BTreeMap<String, String>, name: &str| match options.get(name) {
        Some(value) => format!("`{value}`"),
        None => "not given".to_owned(),
    };
    let names: BTreeSet<&String> = then.options.keys().chain(now.options.keys()).collect();
    names
        .into_iter()
        .filter(|name| {
            place != Some(name.as_str()) && then.options.get(*name) != now.options.get(*name)
        })
        .map(|name| {
            let (then, now) = (said(&then.options, name), said(&now.options, name));
            format!("`{name}` of its {what} `{kind}` was {then}, and is {now}")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_abi::{Operator, Partitioning};

    fn connector(kind: &str, options: &[(&str, &str)]) -> ConnectorSpec {
        ConnectorSpec {
            kind: kind.into(),
            options: options
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
        }
    }

    fn graph() -> JobGraph {
        let operator = |id: &str, kind: &str| Operator {
            id: id.into(),
            kind: kind.into(),
            named: false,
            portable_state: false,
            closure_state: true,
        };
        let source = Stage {
            name: "read".into(),
            input: StageInput::Connector(connector("files", &[("path", "/in")])),
            ports: 0,
            outputs: vec![Output::Edge {
                to: 1,
                port: 0,
                partitioning: Partitioning::Hash,
            }],
            parallelism: None,
            operators: vec![operator("map-1", "map")],
        };
        let count = Stage {
            name: "count".into(),
            input: StageInput::Edges,
            ports: 1,
            outputs: vec![
                Output::Sink(connector("files", &[("path", "/out"), ("records", "raw")])),
                Output::Sink(connector("socket", &[("address", "a:1")])),
            ],
            parallelism: Some(2),
            operators: vec![operator("counts", "fold")],
        };
        JobGraph {
            name: "job".into(),
            stages: vec![source, count],
            parameters: Vec::new(),
        }
    }

    /// The differences after a change.
    fn changed(change: impl FnOnce(&mut JobGraph)) -> Vec<String> {
        let mut now = graph();
        change(&mut now);
        differences(&graph(), &now)
    }

    #[test]
    fn where_sinks_write_to_may_differ_and_what_a_job_is_called() {
        assert_eq!(changed(|_| ()), Vec::<String>::new());
        let elsewhere = changed(|graph| {
            graph.name = "other".into();
            graph.stages[1].outputs = vec![
                Output::Sink(connector("files", &[("path", "/new"), ("records", "raw")])),
                Output::Sink(connector("socket", &[("address", "b:2")])),
            ];
        });
        assert_eq!(elsewhere, Vec::<String>::new());
    }

    #[test]
    fn whatever_shapes_an_image_is_named_when_it_differs() {
        let input = changed(|graph| {
            let files = connector("files", &[("path", "/other"), ("split_bytes", "1MiB")]);
            graph.stages[0].input = StageInput::Connector(files);
        });
        assert_eq!(
            input,
            [
                "stage 0 (read): `path` of its source `files` was `/in`, and is `/other`",
                "stage 0 (read): `split_bytes` of its source `files` was not given, and is `1MiB`",
            ]
        );
        let sink = changed(|graph| {
            graph.stages[1].outputs[0] = Output::Sink(connector("print", &[]));
            graph.stages[1].outputs[1] = Output::Sink(connector("socket", &[("port", "1")]));
        });
        assert_eq!(
            sink,
            [
                "stage 1 (count): its sink was `files`, and is `print`",
                "stage 1 (count): `port` of its sink `socket` was not given, and is `1`",
            ]
        );
        let shape = changed(|graph| {
            graph.stages[0].input = StageInput::Guest;
            graph.stages[0].outputs.clear();
            graph.stages[1].ports = 2;
            graph.stages[1].parallelism = None;
            graph.stages[1].operators[0].id = "sums".into();
        });
        assert_eq!(
            shape,
            [
                "stage 0 (read): its input was of another kind",
                "stage 0 (read): it had 1 outputs, and has 0",
                "stage 1 (count): it had 1 input ports, and has 2",
                "stage 1 (count): its parallelism was 2, and is none of its own",
                "stage 1 (count): its operators were counts (fold), and are sums (fold)",
            ]
        );
    }

    #[test]
    fn every_field_that_is_compared_by_nothing_else_is_compared() {
        let edge = changed(|graph| {
            graph.stages[0].outputs[0] = Output::Edge {
                to: 1,
                port: 0,
                partitioning: Partitioning::Rebalance,
            };
        });
        assert_eq!(edge.len(), 1);
        let state = changed(|graph| graph.stages[1].operators[0].portable_state = true);
        assert_eq!(state.len(), 1);
        let name = changed(|graph| graph.stages[1].name = "sum".into());
        assert_eq!(name, ["stage 1 (sum): it was called `count`"]);
        let fewer = changed(|graph| drop(graph.stages.pop()));
        assert_eq!(fewer, ["it had 2 stages, and has 1"]);
    }
}
