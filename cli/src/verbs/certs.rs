//! `tidemill certs`: a cluster's authority and certificates, as files.

use serde_json::json;
use tidemill_transport::ClusterCa;

use super::Session;
use crate::arguments::Certs;
use crate::failure::{Exit, Failure};
use crate::print;

pub(crate) fn certs(session: &Session, options: &Certs) -> Result<(), Failure> {
    let failed = |error| Failure::of(Exit::Failed, &error);
    let directory = options.out.as_path();
    let is_new = !directory.join("ca.pem").exists() && !directory.join("ca.key").exists();
    let authority = if is_new {
        // Names are checked before the first file is written.
        let authority = ClusterCa::generate().map_err(failed)?;
        for name in &options.names {
            authority.issue(name).map_err(failed)?;
        }
        authority.write(directory).map_err(failed)?;
        authority
    } else {
        ClusterCa::load(directory).map_err(failed)?
    };
    for name in &options.names {
        authority
            .issue(name)
            .map_err(failed)?
            .write(directory)
            .map_err(failed)?;
    }
    if session.is_json() {
        return print::json(&json!({
            "directory": directory,
            "authority": authority.name(),
            "authority_is_new": is_new,
            "names": options.names,
        }));
    }
    let made = if is_new { "made" } else { "found" };
    let mut text = format!(
        "{made} the authority `{}` in {}\n",
        authority.name(),
        directory.display()
    );
    for name in &options.names {
        text.push_str(&format!("made {name}.pem and {name}.key\n"));
    }
    text.push_str(
        "copy ca.pem and a process's own two files to its tls.dir, and keep ca.key away from there",
    );
    print::text(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Everywhere, Output};
    use tidemill_transport::Credentials;

    #[test]
    fn a_second_call_issues_for_the_same_cluster_and_overwrites_nothing() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let everywhere = Everywhere {
            output: Output::Json,
            jobmanager: Vec::new(),
            timeout: None,
            token: None,
        };
        let session = Session { everywhere };
        let issue = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            certs(
                &session,
                &Certs {
                    out: directory.path().join("tls"),
                    names,
                },
            )
        };
        issue(&["jobmanager", "worker-1"]).expect("a new directory");
        issue(&["worker-2"]).expect("the same authority");
        for name in ["jobmanager", "worker-1", "worker-2"] {
            Credentials::load(&directory.path().join("tls"), name).expect("a usable certificate");
        }
        let again = issue(&["worker-1"]).unwrap_err().rendered(Output::Text);
        assert!(
            again.contains("worker-1") && again.contains("exists"),
            "{again}"
        );
        let other = directory.path().join("other");
        let bad = Certs {
            out: other.clone(),
            names: vec!["../x".to_owned()],
        };
        assert!(certs(&session, &bad).is_err());
        assert!(!other.exists());
    }
}
