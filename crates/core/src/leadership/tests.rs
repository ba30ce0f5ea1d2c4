//! What a JobManager does about its leadership, a scenario each. The session timeout is six seconds: the next
//! confirmation is due one second after the last was sent, and the leadership runs out four seconds after that.

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use super::*;

const SESSION: Duration = Duration::from_secs(6);
const GRACE: Duration = Duration::from_secs(10);

fn at(millis: u64) -> Time {
    Time::from_micros(millis * 1000)
}

fn epoch(number: u64) -> Epoch {
    Epoch(number)
}

fn reach(announced: usize, connected: usize, others: usize) -> Event {
    Event::Reach(Reach {
        task_managers_announced: announced,
        task_managers_connected: connected,
        other_candidates: others,
    })
}

/// A JobManager and what it wanted since it was last asked.
struct Candidate(Leadership);

impl Candidate {
    fn new() -> Self {
        let mut candidate = Self(Leadership::new(GRACE));
        assert_eq!(candidate.wants(), [Action::Stand]);
        candidate
    }

    fn leading(number: u64) -> Self {
        let mut candidate = Self::new();
        candidate.lead(0, number);
        candidate
    }

    /// Elected and taken over at once.
    fn lead(&mut self, millis: u64, number: u64) {
        let epoch = epoch(number);
        let wants = self.tell(millis, elected(number, millis));
        assert_eq!(wants, [Action::TakeOver { epoch }]);
        let wants = self.tell(millis, Event::TakenOver { epoch });
        assert_eq!(wants, [Action::Lead { epoch }]);
        assert!(self.0.may_lead(at(millis)));
    }

    fn tell(&mut self, millis: u64, event: Event) -> Vec<Action> {
        self.0.handle(at(millis), event);
        self.wants()
    }

    fn wants(&mut self) -> Vec<Action> {
        core::iter::from_fn(|| self.0.poll_action()).collect()
    }

    /// Lets time pass, stopping at every deadline on the way.
    fn until(&mut self, millis: u64) -> Vec<Action> {
        let mut wants = Vec::new();
        while let Some(due) = self.0.poll_timeout().filter(|due| *due <= at(millis)) {
            self.0.handle_timeout(due);
            wants.extend(self.wants());
        }
        wants
    }

    /// Lets time pass; every confirmation is answered at once.
    fn confirmed_until(&mut self, millis: u64) -> Vec<Action> {
        let mut wants = Vec::new();
        while let Some(due) = self.0.poll_timeout().filter(|due| *due <= at(millis)) {
            self.0.handle_timeout(due);
            for want in self.wants() {
                if let Action::Confirm { epoch } = want {
                    self.0.handle(
                        due,
                        Event::Confirmed {
                            epoch,
                            sent_at: due,
                        },
                    );
                } else {
                    wants.push(want);
                }
            }
        }
        wants
    }
}

fn elected(number: u64, confirmed_at: u64) -> Event {
    Event::Elected {
        epoch: epoch(number),
        confirmed_at: at(confirmed_at),
        session_timeout: Some(SESSION),
    }
}

fn confirmed(number: u64, sent_at: u64) -> Event {
    Event::Confirmed {
        epoch: epoch(number),
        sent_at: at(sent_at),
    }
}

fn gives_up(number: u64, reason: StepDownReason) -> [Action; 2] {
    let epoch = epoch(number);
    [Action::StepDown { epoch, reason }, Action::Resign { epoch }]
}

fn unconfirmed_for(millis: u64) -> StepDownReason {
    StepDownReason::NotConfirmed {
        since: Duration::from_millis(millis),
    }
}

#[test]
fn a_candidate_is_elected_takes_over_and_leads_as_long_as_it_is_confirmed() {
    let mut candidate = Candidate::new();
    assert!(!candidate.0.may_lead(at(0)));
    candidate.tell(0, elected(7, 0));
    assert_eq!(candidate.0.phase(), Phase::TakingOver { epoch: epoch(7) });
    assert!(!candidate.0.may_lead(at(0)), "nothing is decided yet");
    candidate.tell(100, Event::TakenOver { epoch: epoch(7) });
    assert_eq!(candidate.confirmed_until(60_000), []);
    assert!(candidate.0.may_lead(at(60_000)));
    assert_eq!(candidate.0.epoch(), Some(epoch(7)));
}

#[test]
fn confirmations_are_asked_for_one_at_a_time_and_also_during_the_take_over() {
    let mut candidate = Candidate::new();
    candidate.tell(0, elected(7, 0));
    let confirm = Action::Confirm { epoch: epoch(7) };
    assert_eq!(candidate.until(1000), core::slice::from_ref(&confirm));
    assert_eq!(candidate.until(2500), [], "the first has no answer yet");
    assert_eq!(candidate.tell(2500, confirmed(7, 1000)), []);
    assert_eq!(
        candidate.until(2500),
        [confirm],
        "the next is due: the last was sent long ago"
    );
}

#[test]
fn a_confirmation_that_fails_is_repeated_until_the_time_is_over() {
    let mut candidate = Candidate::leading(7);
    let epoch = epoch(7);
    let mut tries = 0;
    let mut now = 1000;
    loop {
        let wants = candidate.until(now);
        if wants == [Action::Confirm { epoch }] {
            tries += 1;
            assert_eq!(candidate.tell(now, Event::ConfirmFailed { epoch }), []);
        } else if !wants.is_empty() {
            assert_eq!(wants, gives_up(7, unconfirmed_for(4000)));
            break;
        }
        now += 100;
    }
    assert_eq!(now, 4000);
    assert_eq!(tries, 6);
}

#[test]
fn what_counts_is_when_the_confirmation_was_sent_not_when_it_was_answered() {
    let mut candidate = Candidate::leading(7);
    candidate.until(1000);
    candidate.tell(3900, confirmed(7, 1000));
    assert!(candidate.0.may_lead(at(4999)));
    assert!(!candidate.0.may_lead(at(5000)));
}

#[test]
fn a_confirmation_that_comes_after_the_time_is_over_revives_nothing() {
    let mut candidate = Candidate::leading(7);
    candidate.until(1000);
    let wants = candidate.tell(4000, confirmed(7, 3999));
    assert_eq!(wants, gives_up(7, unconfirmed_for(4000)));
    assert!(!candidate.0.may_lead(at(4000)));
}

#[test]
fn a_process_that_was_frozen_does_nothing_of_what_it_had_decided() {
    let mut candidate = Candidate::new();
    candidate.tell(0, elected(7, 0));
    candidate
        .0
        .handle(at(10), Event::TakenOver { epoch: epoch(7) });
    // Frozen before it could lead, and thawed half a minute later.
    assert!(!candidate.0.may_lead(at(30_000)));
    candidate.0.handle_timeout(at(30_000));
    let wants = candidate.wants();
    assert_eq!(wants, gives_up(7, unconfirmed_for(30_000)));
    let wants = candidate.tell(30_001, Event::Lost { epoch: epoch(7) });
    assert_eq!(wants, [Action::Stand]);
}

#[test]
fn a_process_that_was_frozen_when_it_was_elected_resigns_before_it_begins() {
    let mut candidate = Candidate::new();
    let wants = candidate.tell(9000, elected(7, 5000));
    assert_eq!(wants, [Action::Resign { epoch: epoch(7) }]);
    let wants = candidate.tell(9001, Event::Resigned { epoch: epoch(7) });
    assert_eq!(wants, [Action::Stand]);
}

#[test]
fn who_steps_down_stands_again_only_when_its_lock_is_gone() {
    let mut candidate = Candidate::leading(7);
    let epoch = epoch(7);
    candidate.until(4000);
    assert_eq!(candidate.0.phase(), Phase::SteppingDown { epoch });
    for second in [5, 6] {
        let wants = candidate.tell((second - 1) * 1000, Event::ResignFailed { epoch });
        assert_eq!(wants, [], "it would wait for itself");
        assert_eq!(candidate.until(second * 1000), [Action::Resign { epoch }]);
    }
    assert_eq!(candidate.tell(8400, Event::Lost { epoch }), [Action::Stand]);
    candidate.lead(9000, 8);
}

#[test]
fn who_is_fenced_or_loses_its_session_stops_at_once_and_stands_again() {
    for (event, reason) in [
        (Event::Fenced { epoch: epoch(7) }, StepDownReason::Fenced),
        (Event::Lost { epoch: epoch(7) }, StepDownReason::Lost),
    ] {
        for taken_over in [false, true] {
            let mut candidate = Candidate::new();
            candidate.tell(0, elected(7, 0));
            if taken_over {
                candidate.tell(1, Event::TakenOver { epoch: epoch(7) });
            }
            let wants = candidate.tell(2, event.clone());
            let (epoch, reason) = (epoch(7), reason.clone());
            assert_eq!(
                wants,
                [Action::StepDown { epoch, reason }, Action::Stand],
                "there is no lock to give up"
            );
            assert!(!candidate.0.may_lead(at(2)));
            candidate.lead(3, 8);
        }
    }
}

#[test]
fn news_of_an_older_leadership_changes_nothing() {
    let mut candidate = Candidate::leading(7);
    candidate.tell(1, Event::Lost { epoch: epoch(7) });
    candidate.lead(100, 9);
    let old = epoch(7);
    for late in [
        Event::Fenced { epoch: old },
        Event::Lost { epoch: old },
        Event::Resigned { epoch: old },
        Event::ResignFailed { epoch: old },
        Event::TakenOver { epoch: old },
        Event::ConfirmFailed { epoch: old },
        Event::TakeOverFailed {
            epoch: old,
            reason: "late".to_string(),
        },
        confirmed(7, 200),
    ] {
        assert_eq!(candidate.tell(200, late.clone()), [], "{late:?}");
    }
    assert!(candidate.0.may_lead(at(4099)) && !candidate.0.may_lead(at(4100)));
}

#[test]
fn an_epoch_that_is_not_greater_is_given_back() {
    let mut candidate = Candidate::leading(7);
    candidate.tell(1, Event::Lost { epoch: epoch(7) });
    for number in [7, 6] {
        let epoch = epoch(number);
        let wants = candidate.tell(2, elected(number, 2));
        assert_eq!(wants, [Action::Resign { epoch }]);
        candidate.tell(3, Event::Resigned { epoch });
        assert_eq!(candidate.until(2000), [Action::Stand]);
    }
}

#[test]
fn a_take_over_that_fails_lets_others_try_first_and_for_longer_each_time() {
    let mut candidate = Candidate::new();
    candidate.tell(0, reach(3, 0, 2));
    let mut now = 0;
    for (number, pause) in [(1, 10_000), (2, 20_000), (3, 40_000)] {
        let (epoch, reason) = (epoch(number), "the store does not answer".to_string());
        candidate.tell(now, elected(number, now));
        let failed = Event::TakeOverFailed {
            epoch,
            reason: reason.clone(),
        };
        let wants = candidate.tell(now, failed);
        assert_eq!(
            wants,
            gives_up(number, StepDownReason::TakeOverFailed { reason })
        );
        candidate.tell(now, Event::Resigned { epoch });
        assert_eq!(candidate.until(now + pause - 1), []);
        assert_eq!(candidate.until(now + pause), [Action::Stand]);
        now += pause;
    }
}

#[test]
fn a_take_over_that_fails_is_tried_again_soon_when_nobody_else_is_there() {
    let mut candidate = Candidate::new();
    candidate.tell(0, elected(1, 0));
    let (epoch, reason) = (epoch(1), "the store does not answer".to_string());
    candidate.tell(0, Event::TakeOverFailed { epoch, reason });
    candidate.tell(0, Event::Resigned { epoch });
    assert_eq!(candidate.until(1000), [Action::Stand]);
}

#[test]
fn a_leadership_that_ends_while_it_is_taken_over_never_leads() {
    let mut candidate = Candidate::new();
    candidate.tell(0, elected(7, 0));
    candidate.until(4000);
    let wants = candidate.tell(4001, Event::TakenOver { epoch: epoch(7) });
    assert_eq!(wants, []);
    assert_eq!(candidate.0.phase(), Phase::SteppingDown { epoch: epoch(7) });
}

#[test]
fn who_is_stopped_while_it_leads_hands_over_first() {
    for taken_over in [false, true] {
        let mut candidate = Candidate::new();
        let epoch = epoch(7);
        candidate.tell(0, elected(7, 0));
        if taken_over {
            candidate.tell(1, Event::TakenOver { epoch });
        }
        let wants = candidate.tell(2, Event::StopRequested);
        assert_eq!(wants, gives_up(7, StepDownReason::Stopping));
        assert!(!candidate.0.may_lead(at(2)));
        let wants = candidate.tell(5, Event::Resigned { epoch });
        assert_eq!(wants, [Action::Stopped]);
        assert_eq!(candidate.0.poll_timeout(), None);
        assert_eq!(candidate.tell(6, elected(8, 6)), [], "never again");
    }
}

#[test]
fn who_is_stopped_and_cannot_resign_ends_all_the_same() {
    let epoch = epoch(7);
    let mut failed = Candidate::leading(7);
    failed.tell(2, Event::StopRequested);
    let wants = failed.tell(3, Event::ResignFailed { epoch });
    assert_eq!(wants, [Action::Stopped]);

    let mut silent = Candidate::leading(7);
    silent.tell(2, Event::StopRequested);
    assert_eq!(silent.until(3001), []);
    assert_eq!(silent.until(3002), [Action::Stopped]);

    let mut stepping_down = Candidate::leading(7);
    stepping_down.until(4000);
    assert_eq!(stepping_down.tell(4001, Event::StopRequested), []);
    assert_eq!(stepping_down.until(8000), [Action::Stopped]);
}

#[test]
fn who_is_stopped_while_it_follows_ends_at_once() {
    let mut candidate = Candidate::new();
    assert_eq!(candidate.tell(1, Event::StopRequested), [Action::Stopped]);
    assert_eq!(candidate.tell(2, Event::StopRequested), []);

    let mut not_yet_standing = Candidate(Leadership::new(GRACE));
    let wants = not_yet_standing.tell(0, Event::StopRequested);
    assert_eq!(wants, [Action::Stopped], "it does not stand any more");
}

#[test]
fn a_candidature_that_fails_is_tried_again() {
    let mut candidate = Candidate::new();
    let reason = "refused".to_string();
    assert_eq!(candidate.tell(0, Event::StandFailed { reason }), []);
    assert_eq!(candidate.until(1000), [Action::Stand]);
}

#[test]
fn without_a_session_leadership_never_lapses() {
    let mut candidate = Candidate::new();
    let epoch = epoch(7);
    let embedded = Event::Elected {
        epoch,
        confirmed_at: at(0),
        session_timeout: None,
    };
    candidate.tell(0, embedded);
    candidate.tell(0, Event::TakenOver { epoch });
    assert_eq!(candidate.0.poll_timeout(), None);
    assert!(candidate.0.may_lead(at(u64::MAX / 1000)));
    let wants = candidate.tell(1, Event::StopRequested);
    assert_eq!(wants, gives_up(7, StepDownReason::Stopping));
}

fn out_of_reach(announced: usize, connected: usize) -> StepDownReason {
    StepDownReason::OutOfReach {
        announced,
        connected,
    }
}

#[test]
fn a_leader_that_reaches_too_few_gives_way_to_another_after_the_grace() {
    let mut candidate = Candidate::leading(7);
    assert_eq!(candidate.tell(0, reach(3, 1, 1)), []);
    assert_eq!(candidate.confirmed_until(9999), []);
    let wants = candidate.confirmed_until(10_000);
    assert_eq!(wants, gives_up(7, out_of_reach(3, 1)));
    let wants = candidate.tell(10_001, Event::Resigned { epoch: epoch(7) });
    assert_eq!(wants, [], "the other is to be elected");
    assert_eq!(candidate.until(20_000), []);
    assert_eq!(candidate.until(20_001), [Action::Stand]);
}

#[test]
fn a_leader_that_reaches_half_or_is_alone_stays() {
    for stays in [reach(4, 2, 5), reach(4, 0, 0), reach(0, 0, 5)] {
        let mut candidate = Candidate::leading(7);
        candidate.tell(0, stays.clone());
        assert_eq!(candidate.confirmed_until(100_000), [], "{stays:?}");
        assert!(candidate.0.may_lead(at(100_000)));
    }
}

#[test]
fn taskmanagers_that_come_back_within_the_grace_keep_their_leader() {
    let mut candidate = Candidate::leading(7);
    candidate.tell(0, reach(3, 0, 1));
    candidate.confirmed_until(9000);
    candidate.tell(9000, reach(3, 2, 1));
    assert_eq!(candidate.confirmed_until(60_000), []);
    candidate.tell(60_000, reach(3, 0, 1));
    assert_eq!(
        candidate.confirmed_until(69_999),
        [],
        "the grace begins anew"
    );
    candidate.tell(69_999, reach(3, 0, 0));
    assert_eq!(
        candidate.confirmed_until(100_000),
        [],
        "nobody else is there any more"
    );
}

#[test]
fn the_pause_grows_until_most_are_reached_again() {
    let mut candidate = Candidate::new();
    candidate.tell(0, reach(3, 0, 1));
    let mut now = 0;
    let mut pauses = vec![];
    for number in 1..=5 {
        if number == 4 {
            candidate.tell(now, reach(3, 3, 1));
        }
        candidate.lead(now, number);
        candidate.tell(now, reach(3, 0, 1));
        now += 10_000;
        let wants = candidate.confirmed_until(now);
        assert_eq!(wants, gives_up(number, out_of_reach(3, 0)));
        let epoch = epoch(number);
        candidate.tell(now, Event::Resigned { epoch });
        let due = candidate.0.poll_timeout().expect("it stands again");
        pauses.push(due.since(at(now)).as_secs());
        now = due.as_micros() / 1000;
        assert_eq!(candidate.until(now), [Action::Stand]);
    }
    assert_eq!(pauses, [10, 20, 40, 10, 20]);
}

#[test]
fn who_gave_way_stands_at_once_when_the_others_are_gone() {
    let mut candidate = Candidate::leading(7);
    candidate.tell(0, reach(3, 1, 1));
    candidate.confirmed_until(10_000);
    candidate.tell(10_001, Event::Resigned { epoch: epoch(7) });
    assert_eq!(candidate.tell(11_000, reach(3, 0, 1)), []);
    assert_eq!(candidate.tell(12_000, reach(3, 0, 0)), [Action::Stand]);
    assert_eq!(candidate.until(100_000), [], "once");
}

#[test]
fn the_grace_outlasts_the_announcement_of_taskmanagers_that_died_with_the_last_leader() {
    let mut candidate = Candidate(Leadership::new(Duration::from_secs(1)));
    candidate.wants();
    candidate.tell(0, reach(3, 0, 1));
    candidate.lead(0, 7);
    assert_eq!(candidate.confirmed_until(8000), []);
    candidate.tell(8000, reach(1, 1, 1));
    assert_eq!(candidate.confirmed_until(60_000), []);
}

#[test]
fn reasons_are_sentences_for_people() {
    let reason = unconfirmed_for(4000).to_string();
    assert!(reason.contains("4s") && reason.contains("registry"));
    assert!(out_of_reach(3, 1).to_string().contains("of 3 announced"));
}
