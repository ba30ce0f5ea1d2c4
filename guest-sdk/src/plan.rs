//! The graph while a job function builds it, the mistakes found on the way, and, in an instance, the one stage that it
//! keeps. Every instance builds the whole graph; it never stops at the first mistake, so that all are told at once.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tidemill_abi::{
    ConnectorSpec, JobGraph, KEY_GROUP_DEFAULT_MAX, OpenRequest, Operator, Output, ParameterSpec,
    Partitioning, Stage, StageInput,
};

use crate::output::Port;
use crate::runner::Runner;

/// What the builder runs for.
pub(crate) struct Purpose {
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) allow_missing_parameters: bool,
    /// The instance being opened; `None` while describing.
    pub(crate) instance: Option<OpenRequest>,
}

/// A graph under construction.
pub(crate) struct Plan {
    purpose: Purpose,
    draft: RefCell<Draft>,
    runner: RefCell<Option<Box<dyn Runner>>>,
}

#[derive(Default)]
struct Draft {
    name: String,
    stages: Vec<Stage>,
    parameters: Vec<ParameterSpec>,
    mistakes: Vec<String>,
    /// For each stage the names of its operators, for people.
    operator_names: Vec<Vec<String>>,
    stage_names: BTreeMap<u32, String>,
    /// Streams that nothing follows yet: the number of each, and the operator that it ends with.
    open_ends: BTreeMap<u32, String>,
    ends: u32,
    /// Edges whose partitioning depends on the parallelism of both sides.
    unions: Vec<(u32, usize, Rc<Cell<Partitioning>>)>,
}

/// Which operator of which stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) stage: u32,
    pub(crate) operator: usize,
}

impl Plan {
    pub(crate) fn new(name: &str, purpose: Purpose) -> Self {
        let draft = RefCell::new(Draft {
            name: name.to_owned(),
            ..Draft::default()
        });
        Self {
            purpose,
            draft,
            runner: RefCell::new(None),
        }
    }

    pub(crate) fn purpose(&self) -> &Purpose {
        &self.purpose
    }

    pub(crate) fn mistake(&self, text: String) {
        self.draft.borrow_mut().mistakes.push(text);
    }

    pub(crate) fn set_name(&self, name: &str) {
        name.clone_into(&mut self.draft.borrow_mut().name);
    }

    /// Notes a parameter at its first use.
    pub(crate) fn declare(&self, parameter: ParameterSpec) {
        let mut draft = self.draft.borrow_mut();
        if !draft
            .parameters
            .iter()
            .any(|known| known.name == parameter.name)
        {
            draft.parameters.push(parameter);
        }
    }

    /// Opens a stage; stages are numbered in this order, so that an edge always leads to a higher number.
    pub(crate) fn open_stage(&self, input: StageInput, ports: u32) -> u32 {
        let mut draft = self.draft.borrow_mut();
        draft.stages.push(Stage {
            name: String::new(),
            input,
            ports,
            outputs: Vec::new(),
            parallelism: None,
            operators: Vec::new(),
        });
        draft.operator_names.push(Vec::new());
        draft.stages.len() as u32 - 1
    }

    pub(crate) fn ports(&self, stage: u32) -> u32 {
        self.draft.borrow().stages[stage as usize].ports
    }

    /// Whether this builder runs in an instance of the stage.
    pub(crate) fn keeps(&self, stage: u32) -> bool {
        self.purpose
            .instance
            .as_ref()
            .is_some_and(|request| request.stage == stage)
    }

    pub(crate) fn install(&self, runner: Box<dyn Runner>) {
        *self.runner.borrow_mut() = Some(runner);
    }

    /// Adds an operator to a stage.
    pub(crate) fn add_operator(
        &self,
        stage: u32,
        kind: &str,
        portable_state: bool,
        closure_state: bool,
    ) -> Place {
        let mut draft = self.draft.borrow_mut();
        draft.operator_names[stage as usize].push(kind.to_owned());
        let operators = &mut draft.stages[stage as usize].operators;
        let place = Place {
            stage,
            operator: operators.len(),
        };
        let id = format!("{stage}.{}-{kind}", place.operator);
        operators.push(Operator {
            id,
            kind: kind.to_owned(),
            named: false,
            portable_state,
            closure_state,
        });
        place
    }

    pub(crate) fn name_operator(&self, place: Place, name: &str) {
        name.clone_into(
            &mut self.draft.borrow_mut().operator_names[place.stage as usize][place.operator],
        );
    }

    pub(crate) fn name_stage(&self, stage: u32, name: &str) {
        self.draft
            .borrow_mut()
            .stage_names
            .insert(stage, name.to_owned());
    }

    pub(crate) fn identify(&self, place: Place, id: &str) {
        let operator =
            &mut self.draft.borrow_mut().stages[place.stage as usize].operators[place.operator];
        id.clone_into(&mut operator.id);
        operator.named = true;
    }

    pub(crate) fn set_parallelism(&self, stage: u32, parallelism: u32) {
        let mut draft = self.draft.borrow_mut();
        if parallelism == 0 {
            let name = draft.operator_names[stage as usize].join(" → ");
            draft.mistakes.push(format!(
                "stage {stage} ({name}) asks for parallelism 0: ask for 1 or more"
            ));
        }
        draft.stages[stage as usize].parallelism = Some(parallelism);
    }

    /// Notes a stream that must be continued.
    pub(crate) fn open_end(&self, place: Place) -> u32 {
        let mut draft = self.draft.borrow_mut();
        let operator = draft.stages[place.stage as usize].operators[place.operator]
            .kind
            .clone();
        draft.ends += 1;
        let end = draft.ends;
        draft
            .open_ends
            .insert(end, format!("`{operator}` of stage {}", place.stage));
        end
    }

    pub(crate) fn close_end(&self, end: u32) {
        self.draft.borrow_mut().open_ends.remove(&end);
    }

    /// Adds an edge to a stage and tells its end what it needs to know.
    pub(crate) fn add_edge(
        &self,
        from: u32,
        to: u32,
        port: u32,
        partitioning: Partitioning,
    ) -> Port {
        self.add_output(
            from,
            Output::Edge {
                to,
                port,
                partitioning,
            },
        )
    }

    /// Adds an edge that is forward when both sides have the same parallelism, else rebalances.
    pub(crate) fn add_union_edge(
        &self,
        from: u32,
        to: u32,
        port: u32,
    ) -> (Port, Rc<Cell<Partitioning>>) {
        let decided = Rc::new(Cell::new(Partitioning::Forward));
        let port = self.add_edge(from, to, port, Partitioning::Forward);
        self.draft
            .borrow_mut()
            .unions
            .push((from, port.output as usize, Rc::clone(&decided)));
        (port, decided)
    }

    pub(crate) fn add_sink(&self, from: u32, connector: ConnectorSpec) -> Port {
        self.add_output(from, Output::Sink(connector))
    }

    fn add_output(&self, from: u32, output: Output) -> Port {
        let mut draft = self.draft.borrow_mut();
        let outputs = &mut draft.stages[from as usize].outputs;
        outputs.push(output);
        let output = outputs.len() as u32 - 1;
        let instance = self
            .purpose
            .instance
            .as_ref()
            .filter(|request| request.stage == from);
        let parallelism = instance
            .and_then(|request| request.output_parallelism.get(output as usize).copied())
            .unwrap_or(1);
        let max_parallelism =
            instance.map_or(KEY_GROUP_DEFAULT_MAX, |request| request.max_parallelism);
        Port {
            output,
            parallelism: parallelism.max(1),
            max_parallelism: max_parallelism.max(1),
        }
    }

    pub(crate) fn subtask(&self) -> u32 {
        self.purpose
            .instance
            .as_ref()
            .map_or(0, |request| request.subtask)
    }

    /// Checks what was built; gives the graph and, in an instance, the stage it keeps.
    pub(crate) fn seal(&self) -> Result<(JobGraph, Option<Box<dyn Runner>>), String> {
        let mut draft = self.draft.take();
        draft.decide_unions();
        draft.name_stages();
        draft.check_parameters(&self.purpose.parameters);
        draft.check_shape();
        if !draft.mistakes.is_empty() {
            return Err(draft.mistakes.join("\n"));
        }
        let graph = JobGraph {
            name: draft.name,
            stages: draft.stages,
            parameters: draft.parameters,
        };
        Ok((graph, self.runner.take()))
    }
}

impl Draft {
    fn decide_unions(&mut self) {
        for (from, output, decided) in &self.unions {
            let of_sender = self.stages[*from as usize].parallelism;
            let Output::Edge { to, .. } = &self.stages[*from as usize].outputs[*output] else {
                continue;
            };
            if of_sender == self.stages[*to as usize].parallelism {
                continue;
            }
            decided.set(Partitioning::Rebalance);
            if let Output::Edge { partitioning, .. } =
                &mut self.stages[*from as usize].outputs[*output]
            {
                *partitioning = Partitioning::Rebalance;
            }
        }
    }

    fn name_stages(&mut self) {
        for (number, (stage, operators)) in
            (0..).zip(self.stages.iter_mut().zip(&self.operator_names))
        {
            stage.name = self
                .stage_names
                .remove(&number)
                .unwrap_or_else(|| operators.join(" → "));
        }
    }

    fn check_parameters(&mut self, given: &BTreeMap<String, String>) {
        let known: BTreeSet<&str> = self
            .parameters
            .iter()
            .map(|parameter| parameter.name.as_str())
            .collect();
        for name in given.keys().filter(|name| !known.contains(name.as_str())) {
            let nearest = known
                .iter()
                .min_by_key(|candidate| strsim::osa_distance(candidate, name));
            let hint = match nearest {
                Some(candidate) if strsim::osa_distance(candidate, name) <= 1 + name.len() / 3 => {
                    format!("did you mean `{candidate}`?")
                }
                Some(_) => format!(
                    "it has {}",
                    known
                        .iter()
                        .map(|name| format!("`{name}`"))
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
                None => "it has none".to_owned(),
            };
            self.mistakes
                .push(format!("the job has no parameter `{name}`: {hint}"));
        }
    }

    fn check_shape(&mut self) {
        if self.stages.is_empty() {
            self.mistakes
                .push("the job has no source: begin with `job.source(…)`".to_owned());
        }
        for operator in self.open_ends.values() {
            self.mistakes.push(format!("nothing follows {operator}: end the stream with `.sink(…)`, or with `.sink(discard())`"));
        }
        let mut ids = BTreeSet::new();
        for operator in self.stages.iter().flat_map(|stage| &stage.operators) {
            if !ids.insert(&operator.id) {
                self.mistakes.push(format!(
                    "two operators have the id `{}`: ids are unique in a job",
                    operator.id
                ));
            }
        }
    }
}
