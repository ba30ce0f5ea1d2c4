//! What layering promises: who wins, what is refused and in which words, and what no message shows.

use super::*;
use std::io::Write;

fn load_file(text: &str) -> Result<Config, String> {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes())
        .expect("room for a few bytes");
    let name = file.path().display().to_string();
    Config::load(Some(file.path()), [], &[])
        .map_err(|error| error.to_string().replace(&name, "FILE"))
}

fn load_set(overrides: &[&str]) -> Result<Config, String> {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    Config::load(None, [], &overrides).map_err(|error| error.to_string())
}

fn load_variable(variable: &str, text: &str) -> Result<Config, String> {
    let environment = [(variable.to_owned(), text.to_owned())];
    Config::load(None, environment, &[]).map_err(|error| error.to_string())
}

#[test]
fn the_defaults_are_valid_and_load_from_nothing() {
    assert_eq!(load_set(&[]), Ok(Config::default()));
    let options = Config::default().job_options(Some(4));
    assert_eq!(
        (
            options.parallelism,
            options.checkpoint_interval_ms,
            options.retained_checkpoints
        ),
        (4, 1000, 2)
    );
}

#[test]
fn the_sample_file_names_every_key_and_changes_nothing() {
    assert_eq!(load_file(&crate::sample()), Ok(Config::default()));
    let uncommented: String = crate::sample()
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| !rest.starts_with(' '))
                .unwrap_or(line)
        })
        .fold(String::new(), |text, line| text + line + "\n");
    assert_eq!(load_file(&uncommented), Ok(Config::default()));
    let sample = include_str!("../../../../conf/tidemill.toml");
    assert!(
        sample == crate::sample(),
        "conf/tidemill.toml is not the sample: run `cargo run -p tidemill-config --example sample > conf/tidemill.toml`"
    );
}

#[test]
fn the_documentation_has_every_key() {
    let documentation = include_str!("../../../../docs/configuration.md");
    for key in keys() {
        assert!(
            documentation.contains(&format!("`{key}`")),
            "docs/configuration.md does not have `{key}`"
        );
    }
}

#[test]
fn later_layers_win_key_by_key() {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(
        b"[taskmanager]\nslots = 2\nid = \"a\"\nlog_lines_max = 7\n[log]\nformat = \"json\"\n",
    )
    .expect("room for a few bytes");
    let environment = [
        ("TIDEMILL_TASKMANAGER_SLOTS".to_owned(), "3".to_owned()),
        ("TIDEMILL_TASKMANAGER_ID".to_owned(), "b".to_owned()),
        (
            "TIDEMILL_TASKMANAGER_JOBMANAGERS".to_owned(),
            "one:1, two:2".to_owned(),
        ),
    ];
    let config = Config::load(
        Some(file.path()),
        environment,
        &["taskmanager.slots=4".to_owned()],
    )
    .expect("every layer is good");
    assert_eq!(config.taskmanager.slots(), 4);
    assert_eq!(config.taskmanager.id.as_deref(), Some("b"));
    assert_eq!(config.taskmanager.jobmanagers, ["one:1", "two:2"]);
    assert_eq!(config.taskmanager.log_lines_max, 7);
    assert_eq!(config.log.format, crate::LogFormat::Json);
    assert_eq!(config.taskmanager.memory_max_bytes, 1 << 32);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest() {
    assert_eq!(
        load_file("[taskmanager]\nslots = 2\n\nslotz = 3\n").unwrap_err(),
        "FILE:4: there is no setting `taskmanager.slotz`; did you mean `taskmanager.slots`?"
    );
    assert_eq!(
        load_file("[task-manager]\nslots = 2\n").unwrap_err(),
        "FILE:1: there is no setting `task-manager`; did you mean `taskmanager`?"
    );
    assert_eq!(
        load_file("slots = 2\n").unwrap_err(),
        "FILE:1: there is no setting `slots`; did you mean `taskmanager.slots`?"
    );
    assert_eq!(
        load_file("checkpoints.intervall_ms = 2\n").unwrap_err(),
        "FILE:1: there is no setting `checkpoints.intervall_ms`; did you mean `checkpoints.interval_ms`?"
    );
    assert_eq!(
        load_set(&["taskmanager.slot=2"]).unwrap_err(),
        "--set taskmanager.slot=2: there is no setting `taskmanager.slot`; did you mean `taskmanager.slots`?"
    );
    assert_eq!(
        load_variable("TIDEMILL_TASKMANAGER_SLOT", "2").unwrap_err(),
        "environment variable TIDEMILL_TASKMANAGER_SLOT: there is no setting `taskmanager.slot`; \
         did you mean `taskmanager.slots`?"
    );
    assert!(
        load_variable("TIDEMILL_CHECKPOINT_INTERVAL_MS", "2")
            .unwrap_err()
            .contains("TIDEMILL_CHECKPOINTS_INTERVAL_MS")
    );
}

#[test]
fn variables_of_others_are_left_alone() {
    for variable in [
        "TIDEMILL_JOBMANAGER",
        "TIDEMILL_SDK_PATH",
        "TIDEMILL_",
        "HOME",
    ] {
        assert_eq!(
            load_variable(variable, "x"),
            Ok(Config::default()),
            "{variable}"
        );
    }
}

#[test]
fn a_wrong_type_names_key_expected_and_found() {
    assert_eq!(
        load_file("[taskmanager]\nslots = \"four\"\n").unwrap_err(),
        "FILE:2: `taskmanager.slots` must be a whole number, but it is the text `four`"
    );
    assert_eq!(
        load_set(&["checkpoints.interval_ms=1s"]).unwrap_err(),
        "--set checkpoints.interval_ms=1s: `checkpoints.interval_ms` must be a whole number, but it is the text `1s`"
    );
    assert_eq!(
        load_file("[taskmanager]\njobmanagers = [1]\n").unwrap_err(),
        "FILE:2: `taskmanager.jobmanagers` must be a list of texts, but it is a list"
    );
    assert_eq!(
        load_file("[taskmanager.slots]\nx = 1\n").unwrap_err(),
        "FILE:1: `taskmanager.slots` must be a whole number, but it is a section"
    );
}

#[test]
fn a_value_that_cannot_be_says_what_can() {
    let refused = [
        ("taskmanager.slots=1025", "from 1 to 1024"),
        (
            "taskmanager.slots=-1",
            "invalid value: integer `-1`, expected u32",
        ),
        ("taskmanager.slots=4294967296", "expected u32"),
        ("checkpoints.retained=0", "at least 1"),
        ("jobmanager.quic_address=localhost", "expected IP:PORT"),
        (
            "jobmanager.rest_address=0.0.0.0:7421",
            "jobmanager.rest_token",
        ),
        (
            "taskmanager.data_address=0.0.0.0:0",
            "taskmanager.advertised_host",
        ),
        ("taskmanager.metrics_address=9100", "IP:PORT"),
        ("taskmanager.jobmanagers=one", "host:port"),
        ("taskmanager.jobmanagers=", "at least one"),
        ("taskmanager.memory_max_bytes=4294967297", "4 GiB"),
        ("cluster.coordination=zoo", "`zookeeper`"),
        ("zookeeper.servers=", "at least one"),
        ("zookeeper.servers=zk1", "host:port"),
        ("zookeeper.servers=zk1:0", "host:port"),
        ("zookeeper.servers=zk1:2181/tidemill", "host:port"),
        ("zookeeper.servers=::1:2181", "[fd00::1]:2181"),
        ("zookeeper.servers=[zk1]:2181", "host:port"),
        ("zookeeper.root=tidemill", "begins with"),
        ("zookeeper.root=/tidemill/", "single slashes"),
        ("zookeeper.root=/a//b", "single slashes"),
        ("zookeeper.root=/a/../b", "single slashes"),
        ("zookeeper.root=/zookeeper/quota", "ZooKeeper's own"),
        ("zookeeper.session_timeout_ms=100", "from 500"),
        (
            "zookeeper.connection_timeout_ms=6001",
            "zookeeper.session_timeout_ms",
        ),
        ("zookeeper.user=a:b", "no colon"),
        ("zookeeper.tls=yes", "true or false"),
        ("zookeeper.tls=true", "authorities"),
        ("zookeeper.tls_ca=/etc/ca.pem", "nothing would be encrypted"),
        (
            "zookeeper.tls_key=/etc/key.pem",
            "needs zookeeper.tls_certificate",
        ),
        ("zookeeper.acl=creator", "zookeeper.user"),
        ("jobmanager.advertised_host=jm-1:7420", "without a port"),
        ("cluster.checkpoint_store_url=/tmp/x", "file:///"),
        ("cluster.name=", "letters"),
        ("restart.strategy=exponential", "exponential-delay"),
        ("log.level=loud", "debug"),
        ("cluster.heartbeat_timeout_ms=1", "twice"),
    ];
    for (text, expected) in refused {
        let error = load_set(&[text]).expect_err(text);
        let key = text.split('=').next().unwrap_or_default();
        assert!(
            error.contains(expected) && error.contains(key),
            "{text}: {error}"
        );
    }
}

#[test]
fn zookeeper_is_reached_by_names_addresses_and_brackets() {
    let config = load_set(&[
        "cluster.coordination=zookeeper",
        "cluster.name=orders",
        "zookeeper.servers=zk-1.example:2181, 10.0.0.2:2181, [fd00::3]:2182",
        "zookeeper.user=tidemill",
        "zookeeper.password=s3cret",
        "zookeeper.acl=creator",
        "zookeeper.tls=true",
        "zookeeper.tls_ca=/etc/ca.pem",
    ])
    .expect("all of it is good");
    assert_eq!(config.cluster.coordination, crate::Coordination::ZooKeeper);
    assert_eq!(
        config.zookeeper.servers,
        ["zk-1.example:2181", "10.0.0.2:2181", "[fd00::3]:2182"]
    );
    assert_eq!(config.zookeeper.acl, crate::ZooKeeperAcl::Creator);
    assert_eq!(config.zookeeper_root(), "/tidemill/orders");
    let at_the_top = load_set(&["zookeeper.root=/"]).expect("good");
    assert_eq!(at_the_top.zookeeper_root(), "/tidemill");
}

#[test]
fn the_example_of_three_machines_is_valid_with_its_secrets_and_not_without() {
    let file = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../conf/high-availability.toml"
    ));
    let token = (
        "TIDEMILL_JOBMANAGER_REST_TOKEN".to_owned(),
        "t0ken".to_owned(),
    );
    let password = (
        "TIDEMILL_ZOOKEEPER_PASSWORD".to_owned(),
        "s3cret".to_owned(),
    );
    let config = Config::load(Some(file), [token.clone(), password.clone()], &[])
        .expect("the example is valid");
    assert_eq!(config.zookeeper.servers.len(), 3);
    assert_eq!(config.zookeeper_root(), "/tidemill/orders");
    let refused = |secret| {
        Config::load(Some(file), [secret], &[])
            .unwrap_err()
            .to_string()
    };
    assert!(refused(token).contains("zookeeper.password"));
    assert!(refused(password).contains("jobmanager.rest_token"));
}

#[test]
fn a_user_and_a_password_come_together() {
    let alone = load_set(&["zookeeper.user=tidemill"]).unwrap_err();
    assert!(alone.contains("a user needs zookeeper.password"), "{alone}");
    let alone = load_variable("TIDEMILL_ZOOKEEPER_PASSWORD", "s3cret").unwrap_err();
    assert!(alone.contains("whose it is with zookeeper.user"), "{alone}");
}

#[test]
fn with_zookeeper_a_jobmanager_says_where_it_is() {
    let wildcards = |more: &[&str]| {
        let mut settings = vec![
            "cluster.coordination=zookeeper",
            "jobmanager.quic_address=0.0.0.0:7420",
            "jobmanager.rest_address=0.0.0.0:7421",
            "jobmanager.rest_token=t0ken",
        ];
        settings.extend(more);
        load_set(&settings)
    };
    assert!(
        wildcards(&[])
            .unwrap_err()
            .contains("jobmanager.advertised_host")
    );
    let config = wildcards(&["jobmanager.advertised_host=fd00::1"]).expect("reachable");
    let bound = config.jobmanager.rest_address;
    assert_eq!(
        config.jobmanager.advertised_address(bound),
        "[fd00::1]:7421"
    );
}

#[test]
fn what_opens_doors_is_in_no_message() {
    let shown = [
        load_set(&["zookeeper.password=s3cret"]).unwrap_err(),
        load_set(&["jobmanager.rest_token=s3cret and more"]).unwrap_err(),
        load_variable("TIDEMILL_ZOOKEEPER_PASSWORD", "s3cret").unwrap_err(),
        load_file("[zookeeper]\npassword = [\"s3cret\"]\n").unwrap_err(),
        load_file("[zookeeper]\nuser = \"a:b\"\npassword = \"s3cret\"\n").unwrap_err(),
    ];
    for message in shown {
        assert!(!message.contains("s3cret"), "{message}");
    }
    let mut config = load_set(&["jobmanager.rest_token=s3cret"]).expect("good");
    config.zookeeper.password = Some("s3cret".to_owned().into());
    let shown = format!("{config:?}");
    assert!(
        !shown.contains("s3cret") && shown.contains("(hidden)"),
        "{shown}"
    );
    assert_eq!(config.zookeeper.password.as_deref(), Some("s3cret"));
}

#[test]
fn a_file_that_is_not_there_or_not_toml_is_named() {
    let missing = Config::load(Some(Path::new("/nowhere/tidemill.toml")), [], &[]).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/tidemill.toml"));
    let error = load_file("[taskmanager\nslots = 2").unwrap_err();
    assert!(
        error.contains("FILE is not valid TOML") && error.contains("line 1"),
        "{error}"
    );
    assert!(
        load_set(&["taskmanager.slots"])
            .unwrap_err()
            .contains("section.key=value")
    );
}

#[test]
fn the_cluster_hash_tells_clusters_apart_and_nothing_else() {
    let same = load_set(&["taskmanager.slots=9"]).expect("good");
    let other = load_set(&["cluster.adoption_timeout_ms=9"]).expect("good");
    assert_eq!(Config::default().cluster.hash(), same.cluster.hash());
    assert_ne!(Config::default().cluster.hash(), other.cluster.hash());
    let reordered = load_set(&["zookeeper.servers=b:1,a:1"]).expect("good");
    assert_eq!(Config::default().cluster.hash(), reordered.cluster.hash());
}

#[test]
fn a_job_overrules_its_own_sections_and_no_other() {
    let cluster = load_set(&["checkpoints.retained=5", "taskmanager.slots=3"]).expect("good");
    let job = |key: &str, value: &str| {
        cluster
            .for_job([(key.to_owned(), value.to_owned())])
            .map_err(|error| error.to_string())
    };
    let config = job("checkpoints.interval_ms", "250").expect("a job's own");
    assert_eq!(
        (config.checkpoints.interval_ms, config.checkpoints.retained),
        (250, 5)
    );
    assert_eq!(config.taskmanager.slots, 3);
    assert_eq!(
        job("restart.strategie", "none").unwrap_err(),
        "the submission: there is no setting `restart.strategie`; did you mean `restart.strategy`?"
    );
    let warm = job("recovery.standby", "true").expect("a job's own");
    assert!(warm.recovery.standby);
    for of_the_cluster in ["taskmanager.slots", "checkpoints.savepoint_dir"] {
        let refused = job(of_the_cluster, "1").unwrap_err();
        assert!(refused.contains("no setting"), "{refused}");
    }
    assert!(
        job("restart.strategy", "maybe")
            .unwrap_err()
            .contains("fixed-delay")
    );
}

#[test]
fn metrics_of_taskmanagers_are_served_where_an_address_is_given() {
    let address = |text: &str| {
        let set = format!("taskmanager.metrics_address={text}");
        let config = Config::load(None, [], &[set]).expect("a good setting");
        config.taskmanager.metrics_address
    };
    assert_eq!(address(""), None);
    assert_eq!(
        address("[::1]:0"),
        Some("[::1]:0".parse().expect("an address"))
    );
}

#[test]
fn an_advertised_host_replaces_the_bound_one() {
    let bound = "127.0.0.1:99".parse().expect("an address");
    let mut config = Config::default().taskmanager;
    assert_eq!(config.advertised_address(bound), "127.0.0.1:99");
    config.advertised_host = Some("worker-1".to_owned());
    assert_eq!(config.advertised_address(bound), "worker-1:99");
    config.advertised_host = Some("fd00::1".to_owned());
    assert_eq!(config.advertised_address(bound), "[fd00::1]:99");
}
