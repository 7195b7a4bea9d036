//! A folder for the servers' sockets, whose paths must be short, that nobody else may enter.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::Context;

/// The longest path of a Unix socket, without the zero byte at its end.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The longest of ours, below a folder for temporary files; those of `recover` are shorter.
const LONGEST_SOCKET_NAME: &str = "mysql-pitr-demo-0123456789ab/recovered.sock";

/// Dropped, it is removed.
pub struct Sockets {
    parent: PathBuf,
    folder: PathBuf,
}

impl Sockets {
    pub fn create() -> anyhow::Result<Sockets> {
        const MODE: u32 = 0o700;
        let usual = std::env::temp_dir();
        let fits = usual.join(LONGEST_SOCKET_NAME).as_os_str().len() <= SOCKET_PATH_BYTES_MAX;
        let parent = if fits { usual } else { "/tmp".into() };
        let random = uuid::Uuid::new_v4().simple().to_string();
        let folder = parent.join(format!("mysql-pitr-demo-{}", &random[..12]));
        DirBuilder::new()
            .mode(MODE)
            .create(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Sockets { parent, folder })
    }

    pub fn socket(&self, server: &str) -> PathBuf {
        self.folder.join(format!("{server}.sock"))
    }

    /// A folder for temporary files in which others find room for sockets too.
    pub fn parent(&self) -> &Path {
        &self.parent
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
