//! How a client asks: of several JobManagers, of a cluster between two leaders, and never twice what may not be.

use std::io;
use std::time::{Duration, Instant};

use super::asking::base_of;
use super::*;
use crate::arguments::Output;
use tidemill_jobmanager::views::JobStatus;

fn job(id: &str, name: &str, status: JobStatus) -> JobSummary {
    JobSummary {
        id: id.into(),
        name: name.into(),
        status,
        message: None,
        submitted_at_ms: 0,
        ended_at_ms: None,
        parallelism: 1,
        tasks: 1,
        tasks_running: 0,
        tasks_finished: 0,
        restarts: 0,
        checkpoints_completed: 0,
        last_checkpoint: None,
        records_in: 0,
        records_out: 0,
    }
}

#[test]
fn a_job_is_found_by_id_prefix_or_name() {
    let jobs = vec![
        job("aa11", "count", JobStatus::Finished),
        job("aa22", "count", JobStatus::Running),
        job("bb33", "routes", JobStatus::Failed),
    ];
    let id = |text: &str| {
        choose(jobs.clone(), text)
            .map(|job| job.id)
            .map_err(|failure| failure.rendered(Output::Text))
    };
    assert_eq!(id("aa11").as_deref(), Ok("aa11"));
    assert_eq!(id("count").as_deref(), Ok("aa22"));
    assert_eq!(id("routes").as_deref(), Ok("bb33"));
    assert_eq!(id("b").as_deref(), Ok("bb33"));
    assert!(
        id("aa")
            .unwrap_err()
            .contains("can mean 2 jobs: aa11 (count), aa22 (count)")
    );
    assert!(id("rotues").unwrap_err().contains("did you mean `routes`"));
    assert!(id("").unwrap_err().contains("there is no job"));
}

#[test]
fn addresses_are_read_leniently_and_refused_clearly() {
    let base = |url: &str| base_of(url).map_err(|failure| failure.rendered(Output::Text));
    assert_eq!(
        base("127.0.0.1:7421").as_deref(),
        Ok("http://127.0.0.1:7421")
    );
    assert_eq!(
        base("http://[::1]:7421/").as_deref(),
        Ok("http://[::1]:7421")
    );
    assert_eq!(
        base("http://leader:7421/v1/jobs?name=x").as_deref(),
        Ok("http://leader:7421")
    );
    assert!(base("https://leader").unwrap_err().contains("only http"));
    for bad in ["", "http://", "http:///v1", "a b:1"] {
        assert!(base(bad).is_err(), "{bad}");
    }
}

#[test]
fn nobody_there_is_said_with_every_address() {
    let closed: Vec<String> = (0..2)
        .map(|_| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.local_addr().expect("a bound address").to_string()
        })
        .collect();
    let failure = Client::new(&closed, None)
        .expect("good addresses")
        .jobs()
        .unwrap_err();
    assert_eq!(failure.exit, Exit::Unreachable);
    let text = failure.rendered(Output::Text);
    assert!(
        closed.iter().all(|address| text.contains(address)),
        "{text}"
    );
    assert!(text.contains("tidemill local"));
}

/// Answers connections one after the other, each with the next of `answers`, and returns what was asked.
fn serve(answers: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let base = format!("http://{}", listener.local_addr().expect("a bound address"));
    let served = std::thread::spawn(move || {
        let answer_one = |answer: String| {
            let (stream, _) = listener.accept().expect("a connection");
            let mut head = String::new();
            let mut reader = io::BufReader::new(&stream);
            while !head.ends_with("\r\n\r\n") {
                let read = io::BufRead::read_line(&mut reader, &mut head).expect("a request");
                assert_ne!(read, 0, "the request broke off");
            }
            io::Write::write_all(&mut &stream, answer.as_bytes()).expect("a listening client");
            head
        };
        answers.into_iter().map(answer_one).collect()
    });
    (base, served)
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    let len = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n{headers}\r\n{body}"
    )
}

#[test]
fn a_follower_s_redirect_and_an_absent_leader_are_followed_up() {
    let (leader, led) = serve(vec![answer("200 OK", "", r#"{"jobs":[]}"#)]);
    let (follower, followed) = serve(vec![answer(
        "307 Temporary Redirect",
        &format!("Location: {leader}/v1/jobs\r\n"),
        "",
    )]);
    let problem = r#"{"error":{"code":"unavailable","message":"shutting down","help":null}}"#;
    let (stopping, stopped) = serve(vec![answer("503 Service Unavailable", "", problem)]);
    let client = Client::new(&[stopping, follower], Some("secret")).expect("good addresses");
    assert_eq!(client.jobs().expect("the leader's answer"), []);
    for asked in [stopped, followed, led] {
        let head = asked.join().expect("no panic").concat();
        assert!(
            head.starts_with("GET /v1/jobs HTTP/1.1") && head.contains("Bearer secret"),
            "{head}"
        );
    }
}

#[test]
fn a_refused_upload_is_told_with_its_help_and_not_sent_again() {
    let problem = r#"{"error":{"code":"module-too-large","message":"17 bytes","help":"build it in release mode"}}"#;
    let (base, asked) = serve(vec![answer("413 Payload Too Large", "", problem)]);
    let client = Client::new(&[base, NOBODY.to_owned()], None).expect("good addresses");
    let failure = client
        .submit(&[0; 1 << 22], &[pair("param.a", "b c&d")])
        .unwrap_err();
    assert_eq!(failure.exit, Exit::Refused);
    assert_eq!(
        failure.rendered(Output::Text),
        "error: 17 bytes\nhelp: build it in release mode"
    );
    let head = asked.join().expect("no panic").concat();
    assert!(
        head.starts_with("POST /v1/jobs?param.a=b%20c%26d&id="),
        "{head}"
    );
    assert!(
        head.to_lowercase().contains("expect: 100-continue"),
        "{head}"
    );
}

/// As long as a test may wait, without words.
const PATIENT: Patience = Patience {
    limit: Duration::from_secs(20),
    with_nobody: false,
    is_told: false,
};

/// A port that is never given to anybody who asks for a free one.
const NOBODY: &str = "127.0.0.1:1";

const NO_LEADER: &str =
    r#"{"error":{"code":"no-leader","message":"there is no leader now","help":null}}"#;
const SUBMITTED: &str =
    r#"{"id":"0a","name":"count","slots_needed":1,"slots_free":1,"warnings":[]}"#;

fn id_in(head: &str) -> &str {
    let (_, rest) = head.split_once("id=").expect("a submission has an id");
    &rest[..32]
}

#[test]
fn a_cluster_between_two_leaders_is_waited_for() {
    let unavailable = || answer("503 Service Unavailable", "", NO_LEADER);
    let (base, asked) = serve(vec![
        unavailable(),
        unavailable(),
        answer("200 OK", "", r#"{"jobs":[]}"#),
    ]);
    let client = Client::new(&[base], None).expect("a good address");
    assert_eq!(client.with(PATIENT).jobs().expect("the third answer"), []);
    assert_eq!(asked.join().expect("no panic").len(), 3);
}

#[test]
fn followers_that_still_name_a_dead_leader_are_asked_again() {
    let (leader, led) = serve(vec![answer("200 OK", "", r#"{"jobs":[]}"#)]);
    let redirect = |to: &str| {
        let location = format!("Location: {to}/v1/jobs\r\n");
        answer("307 Temporary Redirect", &location, "")
    };
    let (follower, _) = serve(vec![
        redirect(&format!("http://{NOBODY}")),
        redirect(&leader),
    ]);
    let client = Client::new(&[NOBODY.to_owned(), follower], None).expect("good addresses");
    assert_eq!(client.with(PATIENT).jobs().expect("the new leader"), []);
    led.join().expect("one request");
}

#[test]
fn no_leader_in_time_is_told_with_what_every_jobmanager_said() {
    let (base, _) = serve(vec![answer("503 Service Unavailable", "", NO_LEADER)]);
    let client = Client::new(&[base], None).expect("a good address");
    let failure = client.jobs().unwrap_err();
    assert_eq!(failure.exit, Exit::Unreachable);
    let text = failure.rendered(Output::Text);
    assert!(
        text.contains("no JobManager leads")
            && text.contains("there is no leader now")
            && text.contains("--timeout"),
        "{text}"
    );
}

#[test]
fn one_address_with_nobody_there_is_not_waited_for() {
    let client = Client::new(&[NOBODY.to_owned()], None).expect("a good address");
    let begun = Instant::now();
    let failure = client.with(PATIENT).jobs().unwrap_err();
    assert_eq!(failure.exit, Exit::Unreachable);
    assert!(begun.elapsed() < PATIENT.limit / 2);
}

#[test]
fn a_submission_whose_answer_is_lost_is_sent_again_under_the_same_id() {
    let (base, asked) = serve(vec![
        String::new(),
        answer("503 Service Unavailable", "", NO_LEADER),
        answer("201 Created", "", SUBMITTED),
    ]);
    let client = Client::new(&[base], None).expect("a good address");
    let submitted = client
        .with(PATIENT)
        .submit(b"", &[])
        .expect("the last answer");
    assert_eq!(submitted.name, "count");
    let heads = asked.join().expect("no panic");
    assert!(
        heads.iter().all(|head| id_in(head) == id_in(&heads[0])),
        "{heads:?}"
    );
}

#[test]
fn two_submissions_have_two_ids() {
    let (base, asked) = serve(vec![answer("201 Created", "", SUBMITTED); 2]);
    let client = Client::new(&[base], None).expect("a good address");
    for _ in 0..2 {
        client.submit(b"", &[]).expect("an answer");
    }
    let heads = asked.join().expect("no panic");
    assert_ne!(id_in(&heads[0]), id_in(&heads[1]));
}

#[test]
fn a_submission_in_doubt_is_told_as_such() {
    let (base, asked) = serve(vec![String::new()]);
    let client = Client::new(&[base], None).expect("a good address");
    let failure = client.submit(b"", &[]).unwrap_err();
    assert_eq!(failure.exit, Exit::Unreachable);
    let text = failure.rendered(Output::Text);
    assert!(text.contains("`tidemill list` tells"), "{text}");
    asked.join().expect("one request");
}

#[test]
fn a_full_store_is_told_at_once() {
    let problem = r#"{"error":{"code":"storage-failed","message":"no space left","help":null}}"#;
    let (base, asked) = serve(vec![answer("503 Service Unavailable", "", problem)]);
    let client = Client::new(&[base], None).expect("a good address");
    let failure = client.with(PATIENT).submit(b"", &[]).unwrap_err();
    assert_eq!(
        (failure.exit, failure.message()),
        (Exit::Refused, "no space left")
    );
    assert_eq!(asked.join().expect("no panic").len(), 1);
}

const REQUEST: &str = "00000000000000000000000000000abc";

fn request(status: &str, path: &str) -> String {
    format!(
        r#"{{"id":"{REQUEST}","job":"0a","status":"{status}","step":null,"done_bytes":0,"total_bytes":0,"path":{path},"checkpoint":null,"failure":null}}"#
    )
}

#[test]
fn a_savepoint_whose_answer_is_lost_is_asked_for_again_under_the_same_id() {
    let (base, asked) = serve(vec![
        String::new(),
        answer("503 Service Unavailable", "", NO_LEADER),
        answer("202 Accepted", "", &request("in-progress", "null")),
    ]);
    let client = Client::new(&[base], None).expect("a good address");
    let accepted = client
        .with(PATIENT)
        .trigger_savepoint("0a", REQUEST, Some("sp/before upgrade"), true)
        .expect("the last answer");
    assert_eq!(accepted.id, REQUEST);
    for head in asked.join().expect("no panic") {
        let first = head.lines().next().unwrap_or_default();
        assert!(
            first.starts_with("POST /v1/jobs/0a/savepoints?")
                && first.contains(&format!("id={REQUEST}"))
                && first.contains("stop=true")
                && first.contains("upgrade"),
            "{first}"
        );
    }
}

#[test]
fn a_request_that_a_new_leader_does_not_know_is_told_by_its_code() {
    let problem = r#"{"error":{"code":"unknown-request","message":"not known","help":null}}"#;
    let (base, asked) = serve(vec![answer("404 Not Found", "", problem)]);
    let client = Client::new(&[base], None).expect("a good address");
    let failure = client.savepoint_status("0a", REQUEST).unwrap_err();
    assert_eq!(failure.code(), Some("unknown-request"));
    assert_eq!(failure.exit, Exit::Refused);
    let json: serde_json::Value =
        serde_json::from_str(&failure.rendered(Output::Json)).expect("JSON");
    assert_eq!(json["error"]["code"], "unknown-request");
    asked.join().expect("one request");
}

#[test]
fn a_savepoint_is_one_segment_of_an_address_whatever_its_path_has() {
    let deleted = r#"{"path":"file:///sp/größe 1"}"#;
    let (base, asked) = serve(vec![answer("200 OK", "", deleted)]);
    let client = Client::new(&[base], Some("secret")).expect("a good address");
    let answered = client
        .delete_savepoint("file:///sp/größe 1?x")
        .expect("an answer");
    assert_eq!(answered.path, "file:///sp/größe 1");
    let head = asked.join().expect("no panic").concat();
    let expected = "DELETE /v1/savepoints/file%3A%2F%2F%2Fsp%2Fgr%C3%B6%C3%9Fe%201%3Fx HTTP/1.1";
    assert!(
        head.starts_with(expected) && head.contains("Bearer secret"),
        "{head}"
    );
}
