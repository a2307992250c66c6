//! TLS with certificates that are made at the start.

use std::fs;
use std::io::{self, BufRead as _, BufReader, IoSlice, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// How to speak TLS for this host. The root certificate is written to a file, in PEM form.
pub(super) fn config(ca: &Path) -> io::Result<Arc<ServerConfig>> {
    let made = || -> Result<_, rcgen::Error> {
        let mut root = CertificateParams::default();
        root.distinguished_name.push(DnType::CommonName, "stand-in root");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let leaf = CertificateParams::new(names)?.signed_by(&key, &root)?;
        Ok((root.pem(), leaf.der().clone(), key.serialize_der()))
    };
    let (root, leaf, key) = made().map_err(io::Error::other)?;
    fs::write(ca, root)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![leaf], key));
    config.map(Arc::new).map_err(io::Error::other)
}

/// A socket that is read in large pieces: `rustls` asks for small ones.
pub(super) struct FewReads(BufReader<TcpStream>);

impl FewReads {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(BufReader::with_capacity(256 << 10, stream))
    }
}

impl Read for FewReads {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut ready = self.0.fill_buf()?;
        let length = ready.read(buffer)?;
        self.0.consume(length);
        Ok(length)
    }
}

impl Write for FewReads {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.get_mut().write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.get_mut().flush()
    }
}
