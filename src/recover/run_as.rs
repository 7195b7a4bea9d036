//! The user under whom the server runs.

use std::{os::unix::fs::lchown, path::Path};

use anyhow::Context;
use nix::unistd::{User, geteuid};

use crate::support::hint::OrHint;

const DEFAULT_USER: &str = "mysql";

/// Who mysqld runs as, where this process is root.
#[derive(Debug, Clone)]
pub struct RunAs {
    pub name: String,
    uid: u32,
    gid: u32,
}

impl RunAs {
    /// None where this process is not root: mysqld then runs as whoever we are.
    pub fn find(configured: Option<&str>) -> anyhow::Result<Option<RunAs>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let lookup = |name: &str| User::from_name(name).with_context(|| format!("cannot look up the user {name}"));
        let user = match configured {
            Some(name) => lookup(name)?
                .with_context(|| format!("there is no user {name}"))
                .hint("set user in the [recover] section")?,
            None => match lookup(DEFAULT_USER)? {
                Some(user) => user,
                None => lookup("root")?.context("there is no user root")?,
            },
        };
        Ok(Some(RunAs {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        }))
    }

    /// User and group to start mysqld with; None for root, which mysqld wants to be told by an option.
    pub fn ids(&self) -> Option<(u32, u32)> {
        (self.uid != 0).then_some((self.uid, self.gid))
    }

    pub fn own(&self, path: &Path) -> anyhow::Result<()> {
        // A link may lead anywhere: it is the link that is given.
        lchown(path, Some(self.uid), Some(self.gid)).with_context(|| format!("cannot give {} to {}", path.display(), self.name))
    }
}
