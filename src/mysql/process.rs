//! A mysqld that this process starts, watches and stops: for recovery, for tests and for the demo.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use nix::{
    sys::{prctl, signal::Signal},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::support::hint::OrHint;

use super::{endpoint::Endpoint, query::Session};

/// Between two looks whether a starting server answers.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// What is shown of a server's error log when it failed.
const LOG_LINES_SHOWN: usize = 12;
const LOG_BYTES_READ: usize = 64 * 1024;

/// A running server. Dropped, it is killed; so it is when this process dies without a chance to drop anything.
#[derive(Debug)]
pub struct Mysqld {
    child: Child,
    error_log: PathBuf,
}

impl Mysqld {
    /// Starts `program` with `arguments`, of which the first may be `--no-defaults` or `--defaults-file`.
    pub fn spawn(program: &Path, arguments: &[String], error_log: &Path) -> anyhow::Result<Mysqld> {
        Mysqld::spawn_as(None, program, arguments, error_log)
    }

    /// As [`Mysqld::spawn`], under another user's and group's numbers. mysqld's own `--user` would lift the tie to this process:
    /// the kernel forgets it when a process changes its user.
    pub fn spawn_as(user: Option<(u32, u32)>, program: &Path, arguments: &[String], error_log: &Path) -> anyhow::Result<Mysqld> {
        let mut command = Command::new(program);
        if let Some((uid, gid)) = user {
            command.uid(uid).gid(gid);
        }
        command
            .args(arguments)
            .arg(format!("--log-error={}", error_log.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        // SAFETY: one async-signal-safe system call between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))
            .hint("set mysqld in the [recover] section to the server's program")?;
        Ok(Mysqld {
            child,
            error_log: error_log.to_owned(),
        })
    }

    /// Waits until the server lets `endpoint` in; its error log is the error if it ends before.
    pub async fn wait_ready(&mut self, endpoint: &Endpoint, limit: Duration) -> anyhow::Result<Session> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "mysqld ended while it was starting ({status}); its error log {} ends with:\n{}",
                    self.error_log.display(),
                    self.log_end()
                );
            }
            match Session::connect(endpoint).await {
                Ok(session) => return Ok(session),
                Err(e) if Instant::now() > deadline => {
                    let log = self.log_end();
                    return Err(e.context(format!(
                        "mysqld does not answer after {} s; its error log ends with:\n{log}",
                        limit.as_secs()
                    )));
                }
                Err(_) => sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// Fails if the server has ended by itself.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!(
                "mysqld ended unexpectedly ({status}); its error log {} ends with:\n{}",
                self.error_log.display(),
                self.log_end()
            ),
        }
    }

    /// A clean shutdown.
    pub async fn stop(mut self, limit: Duration) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = timeout(limit, self.child.wait())
            .await
            .with_context(|| format!("mysqld did not stop within {} s", limit.as_secs()))
            .hint("look at its error log; it is killed now")??;
        if !status.success() {
            bail!(
                "mysqld stopped with {status}; its error log {} ends with:\n{}",
                self.error_log.display(),
                self.log_end()
            );
        }
        Ok(())
    }

    /// What a crash does.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("cannot kill mysqld")
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = self.child.id().context("mysqld has ended already")?;
        nix::sys::signal::kill(Pid::from_raw(id.cast_signed()), signal).context("cannot signal mysqld")
    }

    /// The error log's last lines.
    pub fn log_end(&self) -> String {
        let bytes = std::fs::read(&self.error_log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_BYTES_READ)..]).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }
}

/// Makes a new, empty data folder whose root has no password.
pub async fn initialize(program: &Path, arguments: &[String], error_log: &Path, limit: Duration) -> anyhow::Result<()> {
    let mut all = arguments.to_vec();
    all.push("--initialize-insecure".into());
    let mut server = Mysqld::spawn(program, &all, error_log)?;
    let status = timeout(limit, server.child.wait())
        .await
        .context("mysqld --initialize-insecure takes too long")??;
    if !status.success() {
        bail!(
            "mysqld --initialize-insecure failed ({status}); its error log ends with:\n{}",
            server.log_end()
        );
    }
    Ok(())
}
