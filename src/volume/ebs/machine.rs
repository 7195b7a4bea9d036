//! Which instance this machine is and where it stands, by its metadata service (IMDSv2).

use std::{env, time::Duration};

use anyhow::anyhow;
use aws_config::imds;
use aws_sdk_ec2::error::DisplayErrorContext;
use tracing::debug;

use super::client::Clients;
use crate::{
    support::hint::with_hint,
    volume::disks::{Place, Reach},
};

/// It is on the machine itself, or not at all.
const TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 3;
const INSTANCE_ID: &str = "/latest/meta-data/instance-id";
const ZONE: &str = "/latest/meta-data/placement/availability-zone";
/// AWS's own switch: the SDK's parts that look at it are not those that are used here.
const DISABLED: &str = "AWS_EC2_METADATA_DISABLED";

/// None where it is no instance, or its metadata service is out of reach.
pub(super) async fn instance_id() -> Option<String> {
    match ask(INSTANCE_ID).await {
        Ok(id) => Some(id).filter(|id| id.starts_with("i-")),
        Err(e) => {
            debug!("no metadata service answers: {e}");
            None
        }
    }
}

/// Where this process runs: what `reach` says, and for the rest what the metadata service says.
pub(super) async fn place(clients: &Clients, reach: &Reach) -> anyhow::Result<Place> {
    let known = async |known: &Option<String>, path: &str, what: &str| match known {
        Some(known) => Ok(known.clone()),
        None => ask(path)
            .await
            .map_err(|e| unknown(anyhow!("the metadata service does not say {what}: {e}"))),
    };
    Ok(Place {
        region: clients
            .home_region()
            .await
            .ok_or_else(|| unknown(anyhow!("nobody says in which AWS region this machine is")))?,
        zone: known(&reach.zone, ZONE, "in which availability zone this machine is").await?,
        instance: known(&reach.instance, INSTANCE_ID, "which instance this machine is").await?,
    })
}

fn unknown(e: anyhow::Error) -> anyhow::Error {
    let hint = "on an instance of EC2 see to it that its metadata service answers; else set region, availability_zone and instance_id in the \
                [recover.volume] section";
    with_hint(e, hint)
}

async fn ask(path: &str) -> Result<String, String> {
    if env::var(DISABLED).is_ok_and(|value| value.eq_ignore_ascii_case("true")) {
        return Err(format!("{DISABLED} is set"));
    }
    let client = imds::Client::builder()
        .max_attempts(ATTEMPTS)
        .connect_timeout(TIMEOUT)
        .read_timeout(TIMEOUT)
        .build();
    match client.get(path).await {
        Ok(answer) => Ok(answer.as_ref().trim().to_owned()),
        Err(e) => Err(DisplayErrorContext(&e).to_string()),
    }
}
