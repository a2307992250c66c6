//! Certificates that exist for one test.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, version};

use super::DOMAIN;

/// A certificate authority and the certificate of one server.
pub struct Identity {
    acceptor: TlsAcceptor,
    /// The authority's certificate.
    pub ca_pem: String,
    /// The SHA-256 of the server's certificate in DER.
    pub fingerprint: [u8; 32],
}

/// The defect of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    Expired,
    NotYetValid,
    OtherNames,
}

impl Identity {
    pub(super) fn new(flaw: Option<Flaw>) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "authority of one test");
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::new(ca, ca_key);

        let leaf_key = KeyPair::generate().unwrap();
        let names = ["localhost".to_owned(), DOMAIN.to_owned(), format!("*.{DOMAIN}")];
        let mut leaf = CertificateParams::new(names).unwrap();
        leaf.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        match flaw {
            None => {}
            Some(Flaw::Expired) => leaf.not_after = date_time_ymd(2020, 1, 1),
            Some(Flaw::NotYetValid) => leaf.not_before = date_time_ymd(2200, 1, 1),
            Some(Flaw::OtherNames) => {
                leaf.subject_alt_names =
                    CertificateParams::new(["other.test".to_owned()]).unwrap().subject_alt_names;
            }
        }
        leaf.distinguished_name.push(DnType::CommonName, "server of one test");
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap().der().clone();

        let fingerprint = Sha256::digest(&leaf).into();
        let acceptor = acceptor(leaf, PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        Self { acceptor, ca_pem, fingerprint }
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }
}

fn acceptor(leaf: CertificateDer<'static>, key: PrivatePkcs8KeyDer<'static>) -> TlsAcceptor {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS12, &version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf], key.into())
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}
