//! TLS of the listener: a certificate and its key from PEM files, taken in anew when they change.
//!
//! HTTP/1.1 only, as in the clear. What a file held last is kept while the new content is none, or does not fit the other
//! file: a renewal writes one after the other. Somebody who speaks plain HTTP is told so, and the connection is closed.

use std::fs::Metadata;
use std::future::Future;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::accept::{Visitor, last_word};
use super::refusal;
use super::stall::Impatient;
use crate::config::TlsFiles;
use crate::refusal::{Ambiguity, Refusal};

/// How often the files are looked at.
const EVERY: Duration = Duration::from_secs(5);

/// The first byte of a TLS handshake; no method of HTTP starts so.
const HANDSHAKE: u8 = 0x16;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{setting} {} cannot be read", path.display())]
    Unreadable {
        /// `tls_cert` or `tls_key`.
        setting: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no certificate in the file.
    #[error("tls_cert {} holds no certificate in PEM", .0.display())]
    NoCertificate(PathBuf),
    /// There is no private key in the file that can be read without a passphrase.
    #[error("tls_key {} holds no private key in PEM", .0.display())]
    NoKey(PathBuf),
    /// Certificate and key do not go together, or are of a kind that is not served.
    #[error("tls_cert {} cannot be served with tls_key {}", cert.display(), key.display())]
    Unusable {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// A certificate that is served, and the files it is from.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    files: TlsFiles,
    served: RustlsConfig,
    stamps: Stamps,
}

/// By which a change of the files is seen.
type Stamps = [Option<(SystemTime, (i64, i64), u64, u64)>; 2];

impl Certificate {
    /// Reads the files.
    pub(super) fn read(files: TlsFiles) -> Result<Certificate, TlsError> {
        // Before the files: what changes while they are read is a change.
        let stamps = stamps(&files);
        let served = RustlsConfig::from_config(load(&files)?);
        Ok(Certificate { files, served, stamps })
    }

    /// Accepts connections with the certificate of the time, within a time for the handshake.
    pub(super) fn acceptor(&self, patience: Duration) -> RustlsAcceptor<Greeter> {
        RustlsAcceptor::new(self.served.clone())
            .handshake_timeout(patience)
            .acceptor(Greeter { patience })
    }

    /// Looks at the files, and takes them in when they have changed.
    fn renew(&mut self) {
        let stamps = stamps(&self.files);
        if stamps == self.stamps {
            return;
        }
        self.stamps = stamps;
        match load(&self.files) {
            Ok(config) => {
                self.served.reload_from_config(config);
                tracing::info!(tls_cert = %self.files.cert.display(), "a changed certificate is served from here on");
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the certificate has changed and cannot be used; the one before is served on"
            ),
        }
    }
}

/// Takes in a certificate that changes.
pub(super) async fn renew_regularly(mut certificate: Certificate, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let looked = tokio::task::spawn_blocking(move || {
            certificate.renew();
            certificate
        });
        match looked.await {
            Ok(back) => certificate = back,
            Err(error) => {
                tracing::error!(%error, "changes of the certificate are not taken in");
                return;
            }
        }
    }
}

fn stamps(files: &TlsFiles) -> Stamps {
    let stamp = |found: Metadata| {
        let changed = found.modified().ok()?;
        // Who may read a file changes neither its content nor the time of that.
        Some((changed, (found.ctime(), found.ctime_nsec()), found.len(), found.ino()))
    };
    [&files.cert, &files.key].map(|path| std::fs::metadata(path).ok().and_then(stamp))
}

fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let read = |setting, path: &Path| {
        std::fs::read(path).map_err(|source| TlsError::Unreadable {
            setting,
            path: path.to_owned(),
            source,
        })
    };
    let (cert, key) = (read("tls_cert", &files.cert)?, read("tls_key", &files.key)?);
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&cert)
        .collect::<Result<_, _>>()
        .ok()
        .filter(|chain: &Vec<_>| !chain.is_empty())
        .ok_or_else(|| TlsError::NoCertificate(files.cert.clone()))?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| TlsError::NoKey(files.key.clone()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|source| TlsError::Unusable {
            cert: files.cert.clone(),
            key: files.key.clone(),
            source,
        });
    let mut config = config?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Looks at the first byte of a connection before its handshake: who speaks no TLS is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Greeter {
    patience: Duration,
}

impl Accept<TcpStream, Visitor> for Greeter {
    type Stream = Impatient<TcpStream>;
    type Service = Visitor;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Impatient<TcpStream>, Visitor)>> + Send>>;

    fn accept(&self, stream: TcpStream, visitor: Visitor) -> Self::Future {
        let patience = self.patience;
        Box::pin(async move {
            let greeted = visitor.greet(stream, false)?;
            let patience = patience.min(visitor.time().unwrap_or(patience));
            let mut first = [0; 1];
            let seen = timeout(patience, greeted.get_ref().peek(&mut first)).await??;
            if seen > 0 && first[0] != HANDSHAKE {
                last_word(
                    greeted.get_ref(),
                    &refusal::raw(&Refusal::Malformed(Ambiguity::InTheClear)),
                );
                return Err(io::Error::other("it speaks no TLS"));
            }
            Ok((greeted, visitor))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path) -> (TlsFiles, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let files = TlsFiles {
            cert: dir.join("cert.pem"),
            key: dir.join("key.pem"),
        };
        std::fs::write(&files.cert, made.cert.pem()).expect("it is written");
        std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("it is written");
        (files, made.cert.pem())
    }

    #[test]
    fn what_is_no_certificate_is_told_by_what_it_lacks() {
        let dir = tempfile::tempdir().expect("a folder");
        let (files, pem) = write(dir.path());
        load(&files).expect("it can be served");
        let told = |cert: &str, key: &str| {
            let at = |name: &str, text: &str| {
                let path = dir.path().join(name);
                std::fs::write(&path, text).expect("it is written");
                path
            };
            let files = TlsFiles {
                cert: at("cert", cert),
                key: at("key", key),
            };
            load(&files).expect_err("it cannot be served")
        };
        let key = std::fs::read_to_string(&files.key).expect("a key");
        assert!(matches!(told("", &key), TlsError::NoCertificate(_)));
        assert!(matches!(told("no PEM", &key), TlsError::NoCertificate(_)));
        assert!(matches!(told(&key, &key), TlsError::NoCertificate(_)));
        assert!(matches!(told(&pem, &pem), TlsError::NoKey(_)));
        let sealed = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        assert!(matches!(told(&pem, &sealed), TlsError::NoKey(_)));
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        assert!(matches!(told(&other.cert.pem(), &key), TlsError::Unusable { .. }));
        let missing = TlsFiles {
            cert: dir.path().join("nothing"),
            ..files
        };
        let error = load(&missing).expect_err("it is not there");
        assert!(matches!(
            error,
            TlsError::Unreadable {
                setting: "tls_cert",
                ..
            }
        ));
    }

    #[test]
    fn a_renewal_that_is_half_done_waits_for_its_other_half() {
        let dir = tempfile::tempdir().expect("a folder");
        let (files, _) = write(dir.path());
        let mut certificate = Certificate::read(files.clone()).expect("a certificate");
        let served = |certificate: &Certificate| Arc::as_ptr(&certificate.served.get_inner());
        let first = served(&certificate);
        certificate.renew();
        assert_eq!(served(&certificate), first, "nothing has changed");
        let (other, _) = write(tempfile::tempdir_in(dir.path()).expect("a folder").keep().as_path());
        std::fs::rename(&other.cert, &files.cert).expect("it is renewed");
        certificate.renew();
        assert_eq!(served(&certificate), first, "it does not fit its key");
        std::fs::rename(&other.key, &files.key).expect("it is renewed");
        certificate.renew();
        assert_ne!(served(&certificate), first);
    }
}
