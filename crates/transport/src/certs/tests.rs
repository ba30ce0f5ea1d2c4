//! Certificates and keys: through files, with restrictive modes, and refused when damaged.

use super::*;

#[test]
fn certificates_survive_their_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let ca = ClusterCa::generate().expect("a CA");
    ca.write(directory.path()).expect("written");
    ca.issue("node-1")
        .expect("issued")
        .write(directory.path())
        .expect("written");

    let again = ClusterCa::load(directory.path()).expect("read back");
    assert_eq!(again.name(), ca.name());
    again
        .issue("node-2")
        .expect("issued")
        .write(directory.path())
        .expect("written");

    for name in ["node-1", "node-2"] {
        let credentials = Credentials::load(directory.path(), name).expect("read back");
        assert_eq!(credentials.name(), name);
        assert_eq!(
            tls::common_name(&credentials.chain()[0]).as_deref(),
            Some(name)
        );
        tls::configs(&credentials).expect("fit for TLS");
    }
    for key in ["ca.key", "node-1.key"] {
        let mode = fs::metadata(directory.path().join(key))
            .expect("exists")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}

#[test]
fn a_ca_is_not_overwritten() {
    let directory = tempfile::tempdir().expect("a directory");
    ClusterCa::generate()
        .expect("a CA")
        .write(directory.path())
        .expect("written");
    let before = fs::read(directory.path().join("ca.key")).expect("readable");
    let error = ClusterCa::generate()
        .expect("a CA")
        .write(directory.path())
        .expect_err("exists");
    assert!(
        matches!(&error, CertificateError::Exists { path } if path.ends_with("ca.key")),
        "{error}"
    );
    assert_eq!(
        fs::read(directory.path().join("ca.key")).expect("readable"),
        before
    );
}

#[test]
fn missing_and_damaged_files_are_named_with_the_remedy() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = Credentials::load(directory.path(), "node")
        .expect_err("nothing there")
        .to_string();
    assert!(
        missing.contains("ca.pem") && missing.contains("tidemill certs"),
        "{missing}"
    );

    let ca = ClusterCa::generate().expect("a CA");
    ca.write(directory.path()).expect("written");
    ca.issue("node")
        .expect("issued")
        .write(directory.path())
        .expect("written");
    for (file, kind) in [
        ("node.key", "private key"),
        ("node.pem", "certificate"),
        ("ca.pem", "certificate"),
    ] {
        let path = directory.path().join(file);
        let good = fs::read_to_string(&path).expect("readable");
        fs::write(&path, &good[..good.len() / 2]).expect("writable");
        let damaged = Credentials::load(directory.path(), "node")
            .expect_err("damaged")
            .to_string();
        assert!(
            damaged.contains(file) && damaged.contains(kind),
            "{damaged}"
        );
        fs::write(&path, good).expect("writable");
    }
    Credentials::load(directory.path(), "node").expect("whole again");
}

#[test]
fn a_ca_key_that_is_not_the_certificates_is_refused() {
    let (one, other) = (
        tempfile::tempdir().expect("one"),
        tempfile::tempdir().expect("other"),
    );
    ClusterCa::generate()
        .expect("a CA")
        .write(one.path())
        .expect("written");
    ClusterCa::generate()
        .expect("a CA")
        .write(other.path())
        .expect("written");
    fs::copy(other.path().join("ca.key"), one.path().join("ca.key")).expect("copied");
    let error = ClusterCa::load(one.path())
        .err()
        .expect("a mixed-up directory")
        .to_string();
    assert!(error.contains("ca.key"), "{error}");
}

#[test]
fn a_certificate_with_anothers_key_is_unusable_and_says_so() {
    let ca = ClusterCa::generate().expect("a CA");
    let mut identity = ca.issue("node").expect("issued");
    identity.key_pem = ca.issue("node").expect("issued").key_pem;
    let credentials = Credentials::new(&ca, &identity).expect("both parse");
    let error = tls::configs(&credentials)
        .err()
        .expect("they do not fit")
        .to_string();
    assert!(
        error.contains("`node`") && error.contains("tidemill certs"),
        "{error}"
    );
}

#[test]
fn names_that_are_no_file_names_are_refused() {
    let ca = ClusterCa::generate().expect("a CA");
    for name in ["", "ca", "../node", "a/b", ".hidden", "nö", &"x".repeat(65)] {
        assert!(
            matches!(ca.issue(name), Err(CertificateError::Name { .. })),
            "{name}"
        );
    }
}

#[test]
fn secrets_last_as_long_as_the_key_and_no_longer() {
    let ca = ClusterCa::generate().expect("a CA");
    let identity = ca.issue("node").expect("issued");
    let one = Credentials::new(&ca, &identity).expect("parses");
    let again = Credentials::new(&ca, &identity).expect("parses");
    let other = Credentials::new(&ca, &ca.issue("node").expect("issued")).expect("parses");
    assert_eq!(one.secret("a"), again.secret("a"));
    assert_ne!(one.secret("a"), one.secret("b"));
    assert_ne!(one.secret("a"), other.secret("a"));
}
