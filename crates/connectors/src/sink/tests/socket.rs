//! The sink `socket` against receivers that read, and such that do not.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{TcpListener, TcpStream};

use tidemill_abi::ConnectorSpec;
use tidemill_protocol::control::Blame;

use super::local::{batch, checkpoint, identity, restore, spec, start};
use crate::{SinkError, SinkWriter, check_sink};

fn receiver() -> (TcpListener, ConnectorSpec) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let spec = spec("socket", &[("address", &address), ("timeout_ms", "500")]);
    (listener, spec)
}

fn accept(listener: &TcpListener) -> BufReader<TcpStream> {
    BufReader::new(listener.accept().expect("somebody connects").0)
}

fn lines(reader: &mut BufReader<TcpStream>, number: usize) -> Vec<String> {
    reader
        .lines()
        .take(number)
        .map(|line| line.expect("it is text"))
        .collect()
}

#[test]
fn records_arrive_at_once_and_need_no_checkpoint() {
    let (listener, spec) = receiver();
    let mut sink = start(&spec);
    let mut reader = accept(&listener);
    sink.write(&batch(&["a", "", "b c"])).expect("it sends");
    assert_eq!(lines(&mut reader, 3), ["a", "", "b c"]);

    let state = sink.prepare(checkpoint(1)).expect("there is nothing to do");
    assert!(state.is_empty(), "there is nothing to keep");
    sink.commit(checkpoint(1)).expect("there is nothing to do");
    sink.write(&batch(&["after"])).expect("it sends");
    assert_eq!(lines(&mut reader, 1), ["after"]);
    assert_eq!(sink.records(), 4);
    drop(sink);

    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).expect("it is closed");
    assert!(rest.is_empty());
    let mut restored = restore(&spec, 2, &state);
    restored.write(&batch(&["after"])).expect("it sends");
    assert_eq!(lines(&mut accept(&listener), 1), ["after"], "and again");
}

#[test]
fn a_receiver_that_is_not_there_is_named() {
    let (listener, spec) = receiver();
    let address = spec.options["address"].clone();
    drop(listener);
    let error = SinkWriter::start(&spec, identity(1), Box::new(|_| {})).unwrap_err();
    assert!(matches!(error, SinkError::Connect { .. }), "{error:?}");
    assert!(error.to_string().contains(&address), "{error}");
    assert_eq!(error.blame(), Blame::Cluster);
}

/// A task thread that waited for ever could not be cancelled.
#[test]
fn a_receiver_that_does_not_read_fails_the_attempt_after_the_timeout() {
    let (listener, spec) = receiver();
    let mut sink = start(&spec);
    let _silent = accept(&listener);
    let record = "x".repeat(1 << 20);
    let error = (0..1024)
        .find_map(|_| sink.write(&batch(&[&record])).err())
        .expect("no operating system buffers a GiB");
    assert!(matches!(error, SinkError::Send { .. }), "{error:?}");
}

#[test]
fn an_address_has_a_host_and_a_port() {
    let wrong = |address: &str| {
        let checked = check_sink(&spec("socket", &[("address", address)]));
        checked.unwrap_err().to_string()
    };
    for address in ["", "localhost", "host:port", ":7000", "host:70000"] {
        let message = wrong(address);
        assert!(message.contains("`host:port`"), "{message}");
    }
    for address in ["localhost:7000", "127.0.0.1:7000", "[::1]:7000"] {
        check_sink(&spec("socket", &[("address", address)])).expect("it is well formed");
    }
}
