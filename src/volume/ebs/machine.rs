//! Which instance this machine is, by its metadata service (IMDSv2).

use std::{env, time::Duration};

use aws_config::imds;
use tracing::debug;

/// It is on the machine itself, or not at all.
const TIMEOUT: Duration = Duration::from_secs(1);
const INSTANCE_ID: &str = "/latest/meta-data/instance-id";
/// AWS's own switch: the SDK's parts that look at it are not those that are used here.
const DISABLED: &str = "AWS_EC2_METADATA_DISABLED";

/// None where it is no instance, or its metadata service is out of reach.
pub(super) async fn instance_id() -> Option<String> {
    if env::var(DISABLED).is_ok_and(|value| value.eq_ignore_ascii_case("true")) {
        return None;
    }
    let client = imds::Client::builder()
        .max_attempts(2)
        .connect_timeout(TIMEOUT)
        .read_timeout(TIMEOUT)
        .build();
    match client.get(INSTANCE_ID).await {
        Ok(id) => Some(id.as_ref().trim().to_owned()).filter(|id| id.starts_with("i-")),
        Err(e) => {
            debug!("no metadata service answers: {e}");
            None
        }
    }
}
