//! The socket that the status is asked on: beside the database, for its owner alone.

use std::fs;
use std::future::{Ready, ready};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum_server::Handle;
use axum_server::accept::Accept;
use tempfile::TempDir;
use tokio::net::UnixStream;

use crate::store::ServerLock;

/// Connections at once: more than any operator has eyes.
const MOST: usize = 64;

/// How long a connection may take for the head of a request, or idle.
const HEAD: Duration = Duration::from_secs(10);

/// A socket that is listened on; its file goes when this is dropped.
#[derive(Debug)]
pub(in super::super) struct Socket {
    listener: Option<UnixListener>,
    path: PathBuf,
    /// Where the socket has a folder of its own.
    folder: Option<TempDir>,
}

impl Socket {
    /// Listens beside the database; where that path is longer than the system takes, in a private folder.
    pub(in super::super) fn open(database: &Path) -> io::Result<Socket> {
        let beside = ServerLock::socket(database);
        // Who has the database's lock is the only one who listens here: what is there, a server left that died.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        match Socket::at(beside, None) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let owners = fs::Permissions::from_mode(0o700);
                let folder = tempfile::Builder::new()
                    .prefix("gateway-")
                    .permissions(owners)
                    .tempdir()?;
                let path = folder.path().join("sock");
                Socket::at(path, Some(folder))
            }
            done => done,
        }
    }

    fn at(path: PathBuf, folder: Option<TempDir>) -> io::Result<Socket> {
        let socket = Socket {
            listener: Some(UnixListener::bind(&path)?),
            path,
            folder,
        };
        fs::set_permissions(&socket.path, fs::Permissions::from_mode(0o600))?;
        Ok(socket)
    }

    /// Where it is, if that is not beside the database.
    pub(in super::super) fn elsewhere(&self) -> Option<&Path> {
        self.folder.as_ref().map(|_| self.path.as_path())
    }

    /// Answers until the handle says stop.
    pub(super) async fn answer(&mut self, router: Router, handle: Handle<SocketAddr>) {
        let Some(listener) = self.listener.take() else { return };
        let served = async {
            listener.set_nonblocking(true)?;
            let mut server = axum_server::from_unix(listener)?
                .acceptor(Owner(handle.clone()))
                .handle(handle)
                .http1_only()
                .first_request_timeout(HEAD);
            server
                .http_builder()
                .http1()
                .header_read_timeout(HEAD)
                .timer(hyper_util::rt::TokioTimer::new());
            server.serve(router.into_make_service()).await
        };
        if let Err(error) = served.await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the status cannot be asked for any more"
            );
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "the socket of the status is gone already"
            );
        }
    }
}

/// Accepts the user that the server runs as, and root. The file's mode says the same, but for the moment before it is set.
#[derive(Clone, Debug)]
struct Owner(Handle<SocketAddr>);

impl<S> Accept<UnixStream, S> for Owner {
    type Stream = UnixStream;
    type Service = S;
    type Future = Ready<io::Result<(UnixStream, S)>>;

    fn accept(&self, stream: UnixStream, service: S) -> Self::Future {
        let own = rustix::process::geteuid().as_raw();
        let asked = stream.peer_cred().map(|peer| peer.uid());
        ready(match asked {
            Ok(uid) if (uid == own || uid == 0) && self.0.connection_count() <= MOST => Ok((stream, service)),
            Ok(_) => Err(io::ErrorKind::PermissionDenied.into()),
            Err(error) => Err(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_socket_is_its_owners_alone_and_goes_with_its_server() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = folder.path().join("gateway.db");
        fs::write(ServerLock::socket(&database), "left by a server that died").expect("written");
        let socket = Socket::open(&database).expect("it listens");
        assert_eq!(socket.elsewhere(), None);
        assert_eq!(socket.path, folder.path().join("gateway.db.sock"));
        assert_eq!(fs::metadata(&socket.path).expect("it is there").mode() & 0o777, 0o600);
        let path = socket.path.clone();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn where_the_path_is_too_long_it_has_a_private_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let deep = folder.path().join("x".repeat(120));
        fs::create_dir(&deep).expect("a folder");
        let socket = Socket::open(&deep.join("gateway.db")).expect("it listens");
        let noted = socket.elsewhere().expect("it has to be told");
        let place = noted.parent().expect("a folder").to_owned();
        assert!(!place.starts_with(folder.path()), "{}", place.display());
        assert_eq!(fs::metadata(&place).expect("it is there").mode() & 0o777, 0o700);
        drop(socket);
        assert!(!place.exists());
    }
}
