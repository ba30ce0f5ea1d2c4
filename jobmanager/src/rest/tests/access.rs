//! Who is answered: tokens, web pages, and questions to those that do not lead.

use super::*;

#[test]
fn a_token_is_asked_for_where_one_is_set() {
    let server = Server::start(&["jobmanager.rest_token=secret"]);
    let with = |value: &str| {
        server
            .get_with("/v1/jobs", &[("authorization", value)])
            .status
    };
    assert_eq!(server.get("/v1/jobs").status, 401);
    assert_eq!(server.get("/metrics").status, 401);
    assert_eq!(
        (
            with("Bearer wrong"),
            with("Basic secret"),
            with("Bearer secret")
        ),
        (401, 401, 200)
    );
    assert_eq!(
        (
            server.get("/health").status,
            server.get("/v1/openapi.json").status
        ),
        (200, 200)
    );
    let answer = server.get("/v1/jobs");
    assert_eq!(answer.headers["www-authenticate"], "Bearer");
    assert!(answer.problem().2.contains("TIDEMILL_TOKEN"));
}

#[test]
fn without_a_token_no_web_page_can_ask() {
    let server = Server::start(&[]);
    let status = |headers: &[(&str, &str)]| server.get_with("/v1/jobs", headers).status;
    let host = server.base.trim_start_matches("http://").to_owned();
    assert_eq!(status(&[("host", "evil.example:7421")]), 403);
    assert_eq!(status(&[("origin", "http://evil.example")]), 403);
    assert_eq!(status(&[("origin", &server.base), ("host", &host)]), 200);
    assert_eq!(status(&[("host", "localhost:1")]), 200);
    assert_eq!(status(&[("host", "[::1]")]), 200);
}

#[test]
fn a_follower_sends_every_question_to_the_leader_and_answers_for_itself() {
    let server = Server::start(&[]);
    server.standing.send_replace(following());
    let job = format!("/v1/jobs/{KNOWN}/logs?task=1/0&limit=7");
    for path in ["/v1/jobs", &job, "/v1/nodes", "/v1/jobmanagers", "/v2"] {
        let answer = server.get(path);
        assert_eq!(answer.status, 307, "{path}: {}", answer.body);
        let location = format!("http://10.0.0.1:7421{path}");
        assert_eq!(answer.headers["location"], location.as_str());
    }
    let (status, code, message) = server.upload("?name=n&param.a=b%20c", b"\0asm").problem();
    assert_eq!((status, code.as_str()), (307, "not-the-leader"));
    assert!(
        message.contains("jm-1 at http://10.0.0.1:7421"),
        "{message}"
    );
    assert!(
        server
            .submitted
            .lock()
            .expect("no test panics here")
            .is_empty()
    );
    for path in ["/health", "/metrics", "/v1/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
}

#[test]
fn without_a_leader_it_is_said_who_might_lead_and_why_none_does() {
    let server = Server::start(&[]);
    let away = |standing: &mut Standing| {
        standing.leader = None;
        standing.registry.connection = Connection::Suspended;
    };
    server.standing.send_replace(following());
    server.standing.send_modify(away);
    let answer = server.get("/v1/jobs");
    assert_eq!(answer.headers["retry-after"], "1");
    let (status, code, message) = answer.problem();
    assert_eq!((status, code.as_str()), (503, "no-leader"));
    assert!(
        message.contains("jm-3 at http://10.0.0.3:7421"),
        "{message}"
    );
    assert!(
        message.contains("ZooKeeper has not been reachable"),
        "{message}"
    );
    // What is known of a leadership of its own that is over leads nowhere.
    server.standing.send_replace(Standing {
        role: Role::SteppingDown,
        ..leading()
    });
    assert_eq!(server.get("/v1/jobs").problem().1, "no-leader");
}

#[test]
fn a_question_waits_for_the_take_over_that_is_under_way() {
    let server = Server::start(&[]);
    server.standing.send_replace(Standing {
        role: Role::TakingOver,
        ..leading()
    });
    let standing = server.standing.clone();
    server.runtime.spawn(async move {
        // Whoever has come to wait for it has not been answered before.
        while standing.receiver_count() < 3 {
            tokio::task::yield_now().await;
        }
        standing.send_replace(leading());
    });
    assert_eq!(server.get("/v1/jobs").status, 200);
}

#[test]
fn a_token_is_asked_for_before_the_leader_is_named() {
    let server = Server::start(&["jobmanager.rest_token=secret"]);
    server.standing.send_replace(following());
    assert_eq!(server.get("/v1/jobs").status, 401);
    let answer = server.get_with("/v1/jobs", &[("authorization", "Bearer secret")]);
    assert_eq!(answer.status, 307);
}

#[test]
fn the_api_binds_to_others_only_with_a_token_and_names_a_taken_port() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut config = Config::default();
    config.jobmanager.rest_address = "0.0.0.0:0".parse().expect("an address");
    let error = runtime.block_on(bind(&config)).unwrap_err();
    assert!(
        matches!(error, BindError::Unprotected { .. }) && error.to_string().contains("rest_token")
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    config.jobmanager.rest_address = taken.local_addr().expect("a bound address");
    let error = runtime.block_on(bind(&config)).unwrap_err();
    assert!(matches!(error, BindError::Bind { .. }));
    assert!(
        error
            .to_string()
            .contains(&config.jobmanager.rest_address.to_string()),
        "{error}"
    );
}
