//! TLS for QUIC: both sides show a certificate of the cluster's CA, always. TLS 1.3 only, no resumption, no early
//! data. It never sees an address: the CA vouches for membership, not for a host.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::CertificateDer;

use crate::certs::{CertificateError, Credentials};

/// The protocol's name in the TLS handshake; changes when the greeting does.
const ALPN: &[u8] = b"tidemill/1";

/// The two halves that an endpoint needs.
pub(crate) struct TlsConfigs {
    pub(crate) client: Arc<QuicClientConfig>,
    pub(crate) server: Arc<QuicServerConfig>,
}

/// Builds both halves from one identity.
pub(crate) fn configs(credentials: &Credentials) -> Result<TlsConfigs, CertificateError> {
    let invalid = |source: rustls::Error| CertificateError::Unusable {
        name: credentials.name().to_owned(),
        reason: source.to_string(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(credentials.ca().clone()).map_err(invalid)?;
    let roots = Arc::new(roots);

    let mut client = client_config(credentials, &provider, &roots).map_err(invalid)?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = rustls::client::Resumption::disabled();
    let mut server = server_config(credentials, &provider, &roots).map_err(invalid)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.send_tls13_tickets = 0;

    let suite = "ring's provider has the cipher suite of QUIC's first packets";
    Ok(TlsConfigs {
        client: Arc::new(client.try_into().expect(suite)),
        server: Arc::new(server.try_into().expect(suite)),
    })
}

fn client_config(
    credentials: &Credentials,
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
) -> Result<rustls::ClientConfig, rustls::Error> {
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
    rustls::ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(credentials.chain().to_vec(), credentials.key())
}

fn server_config(
    credentials: &Credentials,
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
) -> Result<rustls::ServerConfig, rustls::Error> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
    rustls::ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.chain().to_vec(), credentials.key())
}

/// The common name in a certificate that TLS has already verified.
pub(crate) fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    Some(name.as_str().ok()?.to_owned())
}

/// The name of a connection's other end.
pub(crate) fn peer_name(connection: &quinn::Connection) -> String {
    connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .and_then(|chain| common_name(chain.first()?))
        .unwrap_or_else(|| "a process without a name".to_owned())
}
