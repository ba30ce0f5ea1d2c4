//! What bad input gets at a real cluster: an error that names the thing and the remedy, while another job runs on.

use std::fs;
use std::net::UdpSocket;
use std::process::{Output, Stdio};

use anyhow::{Context, ensure};
use tidemill_tests::{Cluster, ClusterOptions, data, module};

use crate::command_line::{self, says, text, tidemill_alone};
use crate::common::{arguments, word_count};

/// A submission that must be refused with all of these words.
fn refused(cluster: &Cluster, arguments: &[String], words: &[&str]) -> anyhow::Result<()> {
    let arguments = arguments.iter().map(String::as_str);
    let all: Vec<&str> = ["run", "--detach"].into_iter().chain(arguments).collect();
    let said = command_line::refused(cluster, &all)?;
    says(&said, words).with_context(|| format!("the refusal of {all:?}"))
}

#[test]
fn bad_submissions_are_refused_by_name_and_hurt_nobody() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    let running = word_count(&cluster, "output", 6)?;

    let wordcount = module("wordcount")?.to_string_lossy().into_owned();
    let with = |parameters: &[(&str, &str)], more: &[&str]| {
        let owned: Vec<_> = parameters
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        let mut all = vec![wordcount.clone()];
        all.extend(arguments(&owned));
        all.extend(more.iter().map(|word| (*word).to_owned()));
        all
    };
    let input = data("shakespeare.txt");
    let input = input.to_str().unwrap_or_default();
    let fresh = cluster.directory().join("fresh");
    let fresh = fresh.to_str().unwrap_or_default();
    // First, while the job that writes there runs.
    let same = format!("{}/./x/../", running.output.display());
    refused(
        &cluster,
        &with(&[("input", input), ("output", &same)], &[]),
        &["output", running.job.id()],
    )?;

    let file = |name: &str, bytes: &[u8]| -> anyhow::Result<Vec<String>> {
        let path = cluster.directory().join(name);
        fs::write(&path, bytes)?;
        Ok(vec![path.to_string_lossy().into_owned()])
    };
    refused(
        &cluster,
        &file("text.wasm", b"this is no module")?,
        &["WebAssembly"],
    )?;
    refused(
        &cluster,
        &file("empty.wasm", b"\0asm\x01\0\0\0")?,
        &["tidemill_abi_version"],
    )?;
    refused(
        &cluster,
        &[cluster
            .directory()
            .join("none.wasm")
            .to_string_lossy()
            .into_owned()],
        &["none.wasm"],
    )?;

    refused(&cluster, &with(&[("input", input)], &[]), &["output"])?;
    refused(
        &cluster,
        &with(&[("input", "/nonexistent/plays"), ("output", fresh)], &[]),
        &["/nonexistent/plays"],
    )?;
    refused(
        &cluster,
        &with(
            &[("input", input), ("output", fresh), ("rate", "fast")],
            &[],
        ),
        &["rate", "fast"],
    )?;
    let too_many = ["--max-parallelism", "2"];
    refused(
        &cluster,
        &with(&[("input", input), ("output", fresh)], &too_many),
        &["parallelism"],
    )?;
    let setting = ["--set", "checkpoints.intervall_ms=5"];
    refused(
        &cluster,
        &with(&[("input", input), ("output", fresh)], &setting),
        &["checkpoints.interval_ms"],
    )?;
    let posted = cluster.rest().post(
        &format!("/v1/jobs?parallelism=0&param.input={input}&param.output={fresh}"),
        "application/wasm",
        &fs::read(&wordcount)?,
    )?;
    ensure!(
        (400..500).contains(&posted.status) && posted.refusal().contains("parallelism"),
        "{posted:?}"
    );
    let posted = cluster.rest().post("/v1/jobs", "text/plain", b"hello")?;
    ensure!(posted.status == 415, "{posted:?}");

    running.finish(&mut cluster)?;
    cluster.shut_down()
}

#[test]
fn a_finished_jobs_directory_may_be_written_to_again() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    word_count(&cluster, "output", 0)?.finish(&mut cluster)?;
    let files = fs::read_dir(cluster.directory().join("output"))?.count();
    let again = word_count(&cluster, "output", 0)?;
    again
        .job
        .wait_until(&mut cluster, "finished", crate::common::JOB_LIMIT)?;
    let both = fs::read_dir(cluster.directory().join("output"))?.count();
    ensure!(
        both > files,
        "the second job added its own files and overwrote none: {files}, {both}"
    );
    let records = tidemill_tests::oracle::records(&again.output)?.len() as u64;
    ensure!(
        records == 2 * again.truth.records(),
        "{records} records of two jobs"
    );
    cluster.shut_down()
}

/// What a process says that cannot start.
fn start(kind: &str, settings: &[String]) -> anyhow::Result<Output> {
    let mut command = tidemill_alone()?;
    command.arg(kind);
    for setting in settings {
        command.args(["--set", setting]);
    }
    Ok(command.stdin(Stdio::null()).output()?)
}

#[test]
fn a_process_that_cannot_start_says_why() -> anyhow::Result<()> {
    let cluster = Cluster::start(ClusterOptions::default())?;
    let directory = cluster.directory().display().to_string();
    let wrong = |setting: &str, words: &[&str]| -> anyhow::Result<()> {
        let output = start("taskmanager", &[setting.to_owned()])?;
        let said = text(&output);
        ensure!(output.status.code() == Some(2), "{setting}: {said}");
        says(&said, words).with_context(|| setting.to_owned())
    };
    wrong("taskmanager.slots=many", &["taskmanager.slots", "many"])?;
    wrong("taskmanager.slot=2", &["taskmanager.slots"])?;

    let taken = UdpSocket::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?;
    let rest = cluster
        .rest()
        .url()
        .trim_start_matches("http://")
        .to_owned();
    let ports = [
        (
            "taskmanager",
            vec![format!("taskmanager.data_address={port}")],
            port.to_string(),
        ),
        (
            "jobmanager",
            vec![
                "jobmanager.quic_address=127.0.0.1:0".to_owned(),
                format!("jobmanager.rest_address={rest}"),
            ],
            rest,
        ),
    ];
    for (kind, mut settings, port) in ports {
        settings.extend([
            format!("tls.dir={directory}/tls"),
            format!("{kind}.data_dir={directory}/second"),
            format!("cluster.checkpoint_store_url=file://{directory}/store"),
        ]);
        let output = start(kind, &settings)?;
        let said = text(&output);
        ensure!(
            !output.status.success(),
            "a {kind} started on a port in use: {said}"
        );
        ensure!(
            said.contains(&port),
            "the {kind} does not name the port {port}: {said}"
        );
        ensure!(!said.contains("panicked"), "the {kind} panicked: {said}");
    }
    cluster.shut_down()
}

/// Bytes that no peer of this cluster sends, at every port.
#[test]
fn garbage_on_every_port_is_ignored() -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::net::TcpStream;

    let mut cluster = Cluster::start(ClusterOptions::default())?;
    let running = word_count(&cluster, "output", 3)?;
    let mut addresses = vec![cluster.quic_address().to_owned()];
    let nodes = cluster.rest().get("/v1/nodes")?;
    for node in nodes["nodes"].as_array().into_iter().flatten() {
        addresses.extend(node["data_address"].as_str().map(str::to_owned));
    }
    ensure!(
        addresses.len() == 4,
        "one JobManager and three TaskManagers: {addresses:?}"
    );
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut noise: u64 = 0x9E37_79B9_7F4A_7C15;
    for round in 0..2000_usize {
        let datagram: Vec<u8> = (0..round % 1400)
            .map(|_| {
                noise = noise
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (noise >> 56) as u8
            })
            .collect();
        socket.send_to(&datagram, &addresses[round % addresses.len()])?;
    }
    let rest = cluster
        .rest()
        .url()
        .trim_start_matches("http://")
        .to_owned();
    for bytes in [
        &b"\0\0\0\0"[..],
        b"GET /v1/jobs HTTP/9.9\r\n\r\n",
        &[0xff; 4096],
    ] {
        // That the other side hangs up in mid-sentence is its right.
        let _ = TcpStream::connect(&rest)?.write_all(bytes);
    }
    running.finish(&mut cluster)?;
    cluster.shut_down()
}
