//! One run: a seed or a scenario, from the beginning to its end, with whatever went wrong.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::options::Options;
use crate::random::Random;
use crate::scenario::Scenario;
use crate::world::{Counts, Failure, World};

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which seed.
    pub seed: u64,
    /// What is wrong, if anything is.
    pub failure: Option<Failure>,
    /// How often what happened.
    pub counts: Counts,
    /// Events of the world.
    pub events: u64,
    /// One dense line per event, if they were asked for.
    pub lines: Vec<String>,
}

/// Runs what a seed draws, or a scenario with that seed's delays.
#[must_use]
pub fn run(seed: u64, scenario: Option<&Scenario>, logs: bool) -> Report {
    let mut world = match scenario {
        Some(_) => World::new(seed, Options::quiet(), logs),
        None => {
            let mut random = Random::new(seed);
            let mut world = World::new(seed, Options::swarm(&mut random), logs);
            world.populate();
            world
        }
    };
    let ran = catch_unwind(AssertUnwindSafe(|| match scenario {
        Some(scenario) => scenario.play(&mut world),
        None => world.run(),
    }));
    let failure = ran.unwrap_or_else(|panic| Some(Failure::Crash(panic_text(&*panic))));
    Report {
        seed,
        failure,
        counts: world.counts().clone(),
        events: world.events(),
        lines: world.lines().to_vec(),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a machine panicked: {}", text.unwrap_or("no message"))
}
