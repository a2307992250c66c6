//! TLS 1.2 and 1.3 by `rustls`, and the verification of servers.
//!
//! | options | accepted |
//! |---|---|
//! | default | a chain to a root of the platform, valid now, for the name of the server |
//! | with extra roots | the same, or a chain to one of these roots |
//! | with a fingerprint | the certificate with this SHA-256 and no other, whatever its names, dates and issuer |

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use futures_rustls::TlsConnector;
use futures_rustls::rustls::client::WebPkiServerVerifier;
use futures_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use futures_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use futures_rustls::rustls::pki_types::pem::PemObject as _;
use futures_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use futures_rustls::rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, Error as RustlsError, RootCertStore,
    SignatureScheme,
};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, ErrorKind, Result};
use crate::http::{Progress, TransportError, TransportErrorKind};
use crate::rt::Connection;

/// Bytes encrypted before they are written in one call: they fit the processor's cache.
const BUFFER_BYTES: usize = 32 << 10;

/// SHA-256 of a certificate in DER form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CertificateFingerprint([u8; 32]);

impl FromStr for CertificateFingerprint {
    type Err = Error;

    /// Parses 64 hexadecimal digits, with or without colons between pairs.
    fn from_str(text: &str) -> Result<Self> {
        let refused = || Error::new(ErrorKind::InvalidInput, "read a fingerprint").on(text);
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        if digits.len() != 64 {
            return Err(refused());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else { return Err(refused()) };
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for CertificateFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, byte) in self.0.iter().enumerate() {
            let colon = if number == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for CertificateFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertificateFingerprint({self})")
    }
}

/// Verification of servers.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct TlsOptions {
    fingerprint: Option<CertificateFingerprint>,
    roots: Vec<Vec<u8>>,
}

impl TlsOptions {
    /// Accepts only the server with this certificate; default: none.
    pub fn fingerprint(mut self, fingerprint: CertificateFingerprint) -> Self {
        self.fingerprint = Some(fingerprint);
        self
    }

    /// Also trusts these root certificates, in PEM form. May be called repeatedly.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots.push(pem.into());
        self
    }
}

/// Starts TLS on connections.
pub(super) struct Tls {
    connector: TlsConnector,
}

impl Tls {
    pub(super) fn new(options: &TlsOptions) -> Result<Self> {
        let refused = || Error::new(ErrorKind::InvalidInput, "set up TLS");
        let provider = Arc::new(provider());
        let verifier: Arc<dyn ServerCertVerifier> = if let Some(fingerprint) = options.fingerprint {
            Arc::new(Pinned { fingerprint, provider: Arc::clone(&provider) })
        } else {
            let roots = Arc::new(roots(&options.roots)?);
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
            verifier.build().map_err(|error| refused().because(error))?
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| refused().because(error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Self { connector: TlsConnector::from(Arc::new(config)) })
    }

    pub(super) async fn connect(
        &self,
        connection: Box<dyn Connection>,
        host: &str,
    ) -> Result<Box<dyn Connection>, TransportError> {
        let failed = || TransportError::new(TransportErrorKind::Tls, Progress::NotSent, "start TLS");
        let name = ServerName::try_from(host.to_owned()).map_err(|error| failed().because(error))?;
        let stream = self.connector.connect(name, connection).await.map_err(|error| {
            let by_tls = matches!(error.get_ref(), Some(cause) if cause.is::<RustlsError>());
            // A server that breaks off, for instance during a restart, is not a wrong server.
            let kind = if by_tls { TransportErrorKind::Tls } else { TransportErrorKind::Connect };
            TransportError::new(kind, Progress::NotSent, "start TLS").because(error)
        });
        let mut stream = stream?;
        stream.get_mut().1.set_buffer_limit(Some(BUFFER_BYTES));
        Ok(Box::new(stream))
    }
}

/// The provider of `ring`, but with AES-128 before AES-256 where the server leaves the choice to the client: neither is known to be
/// breakable, and AES-128 takes a quarter less processor time.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    let is_quick = |suite: CipherSuite| {
        use CipherSuite as Suite;
        matches!(
            suite,
            Suite::TLS13_AES_128_GCM_SHA256
                | Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    };
    // A stable sort: TLS 1.3 stays before 1.2, and the rest in order.
    provider.cipher_suites.sort_by_key(|suite| (suite.tls13().is_none(), !is_quick(suite.suite())));
    provider
}

fn roots(extra: &[Vec<u8>]) -> Result<RootCertStore> {
    let refused = || Error::new(ErrorKind::InvalidInput, "read root certificates");
    let mut roots = RootCertStore::empty();
    // Some platforms have a root that cannot be parsed; the others are enough.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for pem in extra {
        let mut found = false;
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| refused().because(error))?;
            roots.add(certificate).map_err(|error| refused().because(error))?;
            found = true;
        }
        if !found {
            return Err(refused().because("the text contains no certificate"));
        }
    }
    if roots.is_empty() {
        return Err(refused().because("the platform has no root certificates, and none were given"));
    }
    Ok(roots)
}

/// Accepts one certificate. The proof that the server has its key is still checked.
#[derive(Debug)]
struct Pinned {
    fingerprint: CertificateFingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        if <[u8; 32]>::from(Sha256::digest(certificate)) == self.fingerprint.0 {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(RustlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
