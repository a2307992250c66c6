//! TLS 1.2 and 1.3 by `rustls`, and the verification of servers.
//!
//! | options | accepted |
//! |---|---|
//! | default | a chain to a root of the platform, valid now, for the name of the server |
//! | with another root store | as the default, with the roots of Mozilla instead, or where the platform has none |
//! | with extra roots | the same, or a chain to one of these roots |
//! | with a fingerprint | the certificate with this SHA-256 and no other, whatever its names, dates and issuer |
//! | with a configuration by the caller | as that says |

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use futures_rustls::TlsConnector;
use futures_rustls::rustls::client::WebPkiServerVerifier;
use futures_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
#[cfg(feature = "aws-lc-rs")]
use futures_rustls::rustls::crypto::aws_lc_rs;
#[cfg(feature = "tls")]
use futures_rustls::rustls::crypto::ring;
use futures_rustls::rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
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
use crate::wording::text_as_json;

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

text_as_json!(CertificateFingerprint);

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

/// Root certificates that servers are verified against, beside those given as [`TlsOptions::root_certificates`].
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootStore {
    /// The roots of Mozilla, compiled in with feature `webpki-roots`. They are as old as that crate.
    Mozilla,
    /// The roots of the platform, from its files or from `SSL_CERT_FILE` and `SSL_CERT_DIR`. The default.
    #[default]
    Platform,
    /// The roots of the platform, or the roots of Mozilla if it has none, as in a minimal container image.
    PlatformOrMozilla,
}

/// Implementation of the cryptography of TLS.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsProvider {
    /// `aws-lc-rs`, with feature `aws-lc-rs`.
    AwsLcRs,
    /// `ring`, with feature `tls`.
    Ring,
}

/// Verification of servers, and cryptography.
#[derive(Clone, Default)]
#[must_use]
pub struct TlsOptions {
    #[cfg(feature = "rustls-0_23")]
    config: Option<Arc<ClientConfig>>,
    fingerprint: Option<CertificateFingerprint>,
    provider: Option<TlsProvider>,
    root_store: RootStore,
    roots: Vec<Vec<u8>>,
}

impl TlsOptions {
    /// Uses a configuration of `rustls` 0.23, for instance with a client certificate, and with its own crypto provider; default: one by the other
    /// options, which then must not be set. The client speaks HTTP/1.1: ALPN protocols are none or `http/1.1`.
    #[cfg(feature = "rustls-0_23")]
    pub fn client_config(mut self, config: Arc<ClientConfig>) -> Self {
        self.config = Some(config);
        self
    }

    /// Accepts only the server with this certificate; default: none.
    pub fn fingerprint(mut self, fingerprint: CertificateFingerprint) -> Self {
        self.fingerprint = Some(fingerprint);
        self
    }

    /// Cryptography; default: `aws-lc-rs` if it is compiled in, else `ring`.
    pub fn provider(mut self, provider: TlsProvider) -> Self {
        self.provider = Some(provider);
        self
    }

    /// Also trusts these root certificates, in PEM form. May be called repeatedly.
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots.push(pem.into());
        self
    }

    /// Root certificates that are trusted without being given; default: those of the platform.
    pub fn root_store(mut self, store: RootStore) -> Self {
        self.root_store = store;
        self
    }
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("fingerprint", &self.fingerprint)
            .field("provider", &self.provider)
            .field("root_store", &self.root_store)
            .field("root_certificates", &self.roots.len())
            .finish_non_exhaustive()
    }
}

/// Starts TLS on connections.
pub(super) struct Tls {
    connector: TlsConnector,
}

impl Tls {
    pub(super) fn new(options: &TlsOptions) -> Result<Self> {
        #[cfg(feature = "rustls-0_23")]
        if let Some(config) = &options.config {
            check_alone(config, options)?;
            return Ok(Self { connector: TlsConnector::from(Arc::clone(config)) });
        }
        let refused = || Error::new(ErrorKind::InvalidInput, "set up TLS");
        let provider = Arc::new(provider(options.provider)?);
        let verifier: Arc<dyn ServerCertVerifier> = if let Some(fingerprint) = options.fingerprint {
            Arc::new(Pinned { fingerprint, provider: Arc::clone(&provider) })
        } else {
            let platform = || rustls_native_certs::load_native_certs().certs;
            let roots = Arc::new(roots(options.root_store, platform, &options.roots)?);
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

/// Refuses a configuration of the caller beside other options, or for another protocol.
#[cfg(feature = "rustls-0_23")]
fn check_alone(config: &ClientConfig, options: &TlsOptions) -> Result<()> {
    let TlsOptions { config: _, fingerprint, provider, root_store, roots } = options;
    let refused = |why| Error::new(ErrorKind::InvalidInput, "set up TLS").because(why);
    if fingerprint.is_some() || provider.is_some() || *root_store != RootStore::default() || !roots.is_empty()
    {
        return Err(refused("no other option of TLS goes with a configuration of rustls"));
    }
    if config.alpn_protocols.iter().any(|protocol| protocol != b"http/1.1") {
        return Err(refused("the configuration of rustls offers protocols other than http/1.1"));
    }
    Ok(())
}

type MakeProvider = fn() -> CryptoProvider;

/// The chosen provider, but with AES-128 before AES-256 where the server leaves the choice to the client: neither is known to be
/// breakable, and AES-128 takes a quarter less processor time.
fn provider(choice: Option<TlsProvider>) -> Result<CryptoProvider> {
    // The first one is the default.
    let compiled_in: &[(TlsProvider, MakeProvider)] = &[
        #[cfg(feature = "aws-lc-rs")]
        (TlsProvider::AwsLcRs, aws_lc_rs::default_provider),
        #[cfg(feature = "tls")]
        (TlsProvider::Ring, ring::default_provider),
    ];
    let chosen = compiled_in.iter().find(|(name, _)| choice.is_none_or(|choice| choice == *name));
    let Some((_, chosen)) = chosen else {
        let feature = if choice == Some(TlsProvider::AwsLcRs) { "aws-lc-rs" } else { "tls" };
        let missing = Error::new(ErrorKind::Unsupported, "set up TLS");
        return Err(
            missing.because(format!("its cryptography is not compiled in; feature {feature} adds it"))
        );
    };
    let mut provider = chosen();
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
    Ok(provider)
}

fn roots(
    store: RootStore,
    platform: impl FnOnce() -> Vec<CertificateDer<'static>>,
    extra: &[Vec<u8>],
) -> Result<RootCertStore> {
    let refused = || Error::new(ErrorKind::InvalidInput, "read root certificates");
    let mut roots = RootCertStore::empty();
    if store != RootStore::Mozilla {
        // Some platforms have a root that cannot be parsed; the others are enough.
        roots.add_parsable_certificates(platform());
    }
    if store == RootStore::Mozilla || store == RootStore::PlatformOrMozilla && roots.is_empty() {
        add_mozilla(&mut roots)?;
    }
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
        return Err(refused().because(
            "the platform has no root certificates, and none were given; feature webpki-roots has those of Mozilla",
        ));
    }
    Ok(roots)
}

#[cfg(feature = "webpki-roots")]
#[expect(clippy::unnecessary_wraps, reason = "it fails without the feature")]
fn add_mozilla(roots: &mut RootCertStore) -> Result<()> {
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    Ok(())
}

#[cfg(not(feature = "webpki-roots"))]
fn add_mozilla(_: &mut RootCertStore) -> Result<()> {
    let missing = Error::new(ErrorKind::Unsupported, "read root certificates");
    Err(missing.because("the roots of Mozilla are not compiled in; feature webpki-roots adds them"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(roots: Result<RootCertStore>) -> Result<bool, ErrorKind> {
        roots.map(|roots| roots.len() > 50).map_err(|error| error.kind())
    }

    #[test]
    fn roots_are_those_of_the_chosen_store() {
        let none = || Vec::new();
        let unread = || panic!("the platform is not asked");
        assert_eq!(kind(roots(RootStore::Platform, none, &[])), Err(ErrorKind::InvalidInput));
        let mozilla = if cfg!(feature = "webpki-roots") { Ok(true) } else { Err(ErrorKind::Unsupported) };
        assert_eq!(kind(roots(RootStore::Mozilla, unread, &[])), mozilla);
        assert_eq!(kind(roots(RootStore::PlatformOrMozilla, none, &[])), mozilla);
        let text = vec![b"no certificate".to_vec()];
        assert!(roots(RootStore::PlatformOrMozilla, none, &text).is_err());
    }

    #[test]
    fn quick_ciphers_come_first_with_each_provider() {
        let of =
            |choice| provider(choice).map(|provider| provider.cipher_suites).map_err(|error| error.kind());
        let unsupported = Err(ErrorKind::Unsupported);
        for (choice, compiled_in) in [
            (Some(TlsProvider::AwsLcRs), cfg!(feature = "aws-lc-rs")),
            (Some(TlsProvider::Ring), cfg!(feature = "tls")),
            (None, cfg!(any(feature = "aws-lc-rs", feature = "tls"))),
        ] {
            let first = of(choice).map(|suites| suites[0].suite());
            let expected = if compiled_in { Ok(CipherSuite::TLS13_AES_128_GCM_SHA256) } else { unsupported };
            assert_eq!(first, expected, "{choice:?}");
        }
    }

    #[test]
    #[cfg(all(feature = "rustls-0_23", feature = "tls"))]
    fn a_configuration_of_the_caller_excludes_other_options() {
        let config = |alpn: &[&[u8]]| {
            let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
            let builder = builder.with_safe_default_protocol_versions().unwrap();
            let mut config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
            config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
            TlsOptions::default().client_config(Arc::new(config))
        };
        let pin = "00".repeat(32).parse().unwrap();
        for (options, is_accepted) in [
            (config(&[]), true),
            (config(&[b"http/1.1"]), true),
            (config(&[b"h2", b"http/1.1"]), false),
            (config(&[]).fingerprint(pin), false),
            (config(&[]).provider(TlsProvider::Ring), false),
            (config(&[]).root_store(RootStore::Mozilla), false),
            (config(&[]).root_certificates("x"), false),
        ] {
            let kind = Tls::new(&options).map(drop).map_err(|error| error.kind());
            let expected = if is_accepted { Ok(()) } else { Err(ErrorKind::InvalidInput) };
            assert_eq!(kind, expected, "{options:?}");
        }
    }
}
