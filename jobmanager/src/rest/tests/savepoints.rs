//! Savepoints, asked for and stored.

use super::*;

#[test]
fn a_savepoint_is_asked_for_under_an_id() {
    let server = Server::start(&[]);
    let path = format!("/v1/jobs/{KNOWN}/savepoints");
    let id = request_id();
    let answer = server.post(
        &format!("{path}?id={id}&directory=savepoints/before&stop=true"),
        None,
        b"",
    );
    assert_eq!(answer.status, 202, "{}", answer.body);
    assert_eq!(answer.headers["location"], format!("{path}/{id}").as_str());
    let found = answer.json();
    assert_eq!(
        (&found["status"], &found["failure"]),
        (&json!("failed"), &json!("the store is full"))
    );
    let answer = server.post(&path, None, b"");
    assert_eq!(
        (&answer.json()["step"], &answer.json()["done_bytes"]),
        (&json!("copy"), &json!(10))
    );
    let chosen = answer.json()["id"].as_str().map(str::len);
    assert_eq!(chosen, Some(32));
    let asked = server.asked.lock().expect("no test panics here").clone();
    let expected = format!("savepoint {KNOWN} {id} Some(\"savepoints/before\") true");
    assert_eq!(asked[0], expected);
    assert!(asked[1].ends_with("None false"), "{}", asked[1]);
}

#[test]
fn a_savepoint_that_cannot_be_is_refused_and_says_why() {
    let server = Server::start(&[]);
    let of = |job: &str, query: &str| format!("/v1/jobs/{job}/savepoints{query}");
    let refused = [
        (of("nonsense", ""), 400, "bad-job-id", "hexadecimal"),
        (of(UNKNOWN, ""), 404, "unknown-job", UNKNOWN),
        (of(ENDED, ""), 409, "savepoint-refused", "it has ended"),
        (of(KNOWN, "?id=12"), 400, "bad-query", "32 hexadecimal"),
        (
            of(KNOWN, "?stop=perhaps"),
            400,
            "bad-query",
            "true or false",
        ),
        (of(KNOWN, "?directory="), 400, "bad-path", "names no place"),
        (of(KNOWN, "?directory=a%00b"), 400, "bad-path", "control"),
        (of(KNOWN, "?directory=../x"), 400, "bad-path", "`..`"),
        (of(KNOWN, "?dir=x"), 400, "unknown-option", "id, directory"),
    ];
    for (path, status, code, words) in refused {
        let (found_status, found, message) = server.post(&path, None, b"").problem();
        assert_eq!((found_status, found.as_str()), (status, code), "{path}");
        assert!(message.contains(words), "{path}: {message}");
    }
    let (status, code, message) = server
        .get(&of(KNOWN, "/00000000000000000000000000000001"))
        .problem();
    assert_eq!((status, code.as_str()), (404, "unknown-request"));
    assert!(message.contains("tidemill savepoint list"), "{message}");
    let (status, code, _) = server.get(&of(KNOWN, "/12")).problem();
    assert_eq!((status, code.as_str()), (400, "bad-request-id"));
}

#[test]
fn stored_savepoints_are_named_by_their_paths_and_urls() {
    let server = Server::start(&[]);
    let verify = |path: &str| server.post(&format!("/v1/savepoints/{path}/verify"), None, b"");
    assert_eq!(verify("savepoints%2Fbefore").status, 200);
    let delete = |path: &str| {
        let request = server
            .agent
            .delete(format!("{}/v1/savepoints/{path}", server.base));
        read(request.call().expect("an answer"))
    };
    let answer = delete("savepoints%2Fbefore");
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({ "path": "savepoints/before" }))
    );
    let check = |answer: Answer, status, code: &str, words: &str| {
        let (found_status, found, message) = answer.problem();
        assert_eq!((found_status, found.as_str()), (status, code), "{message}");
        assert!(message.contains(words), "{message}");
    };
    let get = |path: &str| server.get(&format!("/v1/savepoints/{path}"));
    check(get("nothing"), 404, "unknown-savepoint", "`nothing`");
    check(
        verify("savepoints%2Fdamaged"),
        422,
        "savepoint-damaged",
        "9 bytes where 10",
    );
    check(
        delete("checkpoints%2Flive"),
        409,
        "savepoint-in-use",
        "cancel the job first",
    );
    check(
        get("s3%3A%2F%2Faway%2Fx"),
        503,
        "storage-failed",
        "within 30 s",
    );
    check(get("a%2F..%2Fb"), 400, "bad-path", "`..`");
    check(get("file%3A%2F%2F%2F"), 400, "bad-path", "names no place");
    let long = "x".repeat(5000);
    check(get(&long), 400, "bad-path", "too long");
}
