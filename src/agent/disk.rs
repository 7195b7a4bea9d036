//! How much room there is where the server writes its binlogs.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use nix::sys::statvfs::statvfs;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{interval, sleep},
};
use tracing::{debug, info, warn};

use crate::{
    mysql::{endpoint::Endpoint, query::Session},
    support::progress::human_bytes,
};

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A server that is not there yet is asked again.
const ASK_INTERVAL: Duration = Duration::from_secs(5);
/// Room is room only with this part of the floor on top of it, so that the state does not flicker.
const MARGIN_DIVISOR: u64 = 8;

/// Tells `short` whether the binlogs' disk has less than `floor_bytes` free. Ends where nobody can know.
pub async fn watch(endpoint: Endpoint, floor_bytes: u64, short: watch::Sender<bool>) {
    if floor_bytes == 0 {
        return;
    }
    let folder = loop {
        match folder(&endpoint).await {
            Ok(folder) => break folder,
            Err(e) => debug!("the folder of the server's binlogs is not known yet: {e:#}"),
        }
        sleep(ASK_INTERVAL).await;
    };
    let mut looks = interval(LOOK_INTERVAL);
    loop {
        looks.tick().await;
        let free = match free_bytes(folder.clone()).await {
            Ok(free) => free,
            Err(e) => {
                warn!("free_space_floor has no effect: {e:#}");
                short.send_replace(false);
                return;
            }
        };
        let was_short = *short.borrow();
        let wanted = floor_bytes + if was_short { floor_bytes / MARGIN_DIVISOR } else { 0 };
        let is_short = free < wanted;
        if is_short != was_short {
            let (free, floor) = (human_bytes(free), human_bytes(floor_bytes));
            let what = if is_short { "less than" } else { "again more than" };
            info!(folder = %folder.display(), "{free} are free for binlogs, {what} free_space_floor ({floor})");
            short.send_replace(is_short);
        }
    }
}

async fn folder(endpoint: &Endpoint) -> anyhow::Result<PathBuf> {
    let mut session = Session::connect(endpoint).await?;
    let (basename,): (Option<String>,) = session.one("SELECT @@GLOBAL.log_bin_basename").await?;
    session.close().await;
    let basename = PathBuf::from(basename.context("the server writes no binlog")?);
    Ok(basename.parent().map(PathBuf::from).unwrap_or_default())
}

/// What a server that is not root's can still write.
async fn free_bytes(folder: PathBuf) -> anyhow::Result<u64> {
    let what = format!("cannot see how much room there is in {}", folder.display());
    let stat = spawn_blocking(move || statvfs(&folder)).await?.context(what)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}
