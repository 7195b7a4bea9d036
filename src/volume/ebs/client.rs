//! The one way to EC2: with whose keys, in which region, and how patiently.
//!
//! Requests are repeated by the SDK, with backoff and jitter, where they can be; a call ends in time whatever EC2 does. Keys and tokens come
//! from the AWS chain (environment, profile, web identity, container, instance), and are read again as they expire.

use std::{collections::HashMap, fmt, time::Duration};

use anyhow::anyhow;
use aws_config::{BehaviorVersion, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_ec2::{
    Client,
    config::{Builder, Config, Credentials, ProvideCredentials, Region},
};
use tokio::sync::{Mutex, OnceCell};

use super::whole::Whole;

/// EC2 throttles everybody now and then, for seconds: with their waits all of them take a dozen seconds, and never half a minute, so that a
/// call ends with what EC2 said and not with a timeout.
const ATTEMPTS: u32 = 8;
const BACKOFF_MAX: Duration = Duration::from_secs(4);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// A request with all its attempts and the waits between.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// EC2's clients, one for each region.
pub(super) struct Clients {
    /// As it is configured; else what the machine's AWS configuration says.
    region: Option<String>,
    /// For every region; else AWS.
    endpoint: Option<String>,
    /// What the machine's AWS configuration says, read when it is first needed: the metadata service may be late.
    shared: OnceCell<SdkConfig>,
    by_region: Mutex<HashMap<String, Client>>,
}

/// Without clients, whose own `Debug` shows the access key's id.
impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Clients");
        shown.field("region", &self.region).field("endpoint", &self.endpoint);
        shown.finish_non_exhaustive()
    }
}

impl Clients {
    /// Nothing is read or asked for yet.
    pub(super) fn new(region: Option<String>, endpoint: Option<String>) -> Clients {
        Clients {
            region,
            endpoint,
            shared: OnceCell::new(),
            by_region: Mutex::default(),
        }
    }

    /// With a configuration that the caller has read.
    pub(super) fn with(shared: SdkConfig, region: Option<String>, endpoint: Option<String>) -> Clients {
        Clients {
            shared: OnceCell::new_with(Some(shared)),
            ..Clients::new(region, endpoint)
        }
    }

    /// Where this machine is: as configured, as its AWS configuration says, or by its metadata service.
    pub(super) async fn home_region(&self) -> Option<String> {
        match &self.region {
            Some(region) => Some(region.clone()),
            None => self.shared().await.region().map(Region::to_string),
        }
    }

    pub(super) async fn of(&self, region: &str) -> Client {
        let shared = self.shared().await;
        let mut clients = self.by_region.lock().await;
        let client = clients
            .entry(region.to_owned())
            .or_insert_with(|| self.client(&shared, region));
        client.clone()
    }

    /// For what is signed by other means than a request of a client.
    pub(super) async fn credentials(&self) -> anyhow::Result<Credentials> {
        let provider = self.shared().await.credentials_provider();
        let provider = provider.ok_or_else(|| anyhow!("there are no credentials"))?;
        Ok(provider.provide_credentials().await?)
    }

    /// Without a path.
    pub(super) fn endpoint(&self, region: &str) -> String {
        let partition = if region.starts_with("cn-") { ".cn" } else { "" };
        let aws = || format!("https://ec2.{region}.amazonaws.com{partition}");
        self.endpoint.clone().unwrap_or_else(aws)
    }

    async fn shared(&self) -> SdkConfig {
        let read = || async {
            let mut loader = aws_config::defaults(BehaviorVersion::latest());
            if let Some(region) = &self.region {
                loader = loader.region(Region::new(region.clone()));
            }
            let read = loader.load().await;
            // Without a region it is not kept: a metadata service that was late is asked again.
            if read.region().is_some() { Ok(read) } else { Err(read) }
        };
        match self.shared.get_or_try_init(read).await {
            Ok(shared) => shared.clone(),
            Err(without_region) => without_region,
        }
    }

    fn client(&self, shared: &SdkConfig, region: &str) -> Client {
        let mut config = Builder::from(shared);
        config.set_endpoint_url(self.endpoint.clone().or_else(|| shared.endpoint_url().map(str::to_owned)));
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(CALL_TIMEOUT);
        let retries = RetryConfig::standard()
            .with_max_attempts(ATTEMPTS)
            .with_max_backoff(BACKOFF_MAX);
        let config = config
            .region(Region::new(region.to_owned()))
            .retry_config(retries)
            .timeout_config(timeouts.build())
            .interceptor(Whole);
        Client::from_conf(config.build())
    }
}

/// For a request that is made once: whoever asks looks first whether it was carried out.
pub(super) fn once() -> aws_sdk_ec2::config::Builder {
    Config::builder().retry_config(RetryConfig::disabled())
}

/// For one that is made once, and counts only if it is answered within `limit`.
pub(super) fn once_within(limit: Duration) -> aws_sdk_ec2::config::Builder {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(limit.min(CONNECT_TIMEOUT))
        .operation_attempt_timeout(limit)
        .operation_timeout(limit);
    once().timeout_config(timeouts.build())
}
