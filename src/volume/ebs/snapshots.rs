//! Snapshots of volumes, as EC2 makes them: EC2 as [`Cloud`].
//!
//! What may be done twice the client repeats; not `create`, which is made under a lock and once, and not `copy`.

use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_ec2::{
    Client,
    error::ProvideErrorMetadata,
    types::{Filter, InstanceSpecification, ResourceType, Tag, TagSpecification},
};

use super::{
    EbsOptions,
    client::{Clients, once, once_within},
    errors::{Call, Caller},
    machine,
    made::{begun, described, micros, percent, state},
    presign,
};
use crate::{
    support::hint::with_hint,
    volume::{
        cloud::{Cause, Cloud, CloudError, Made, OPERATION_TAG, Order, SOURCE_TAG, Subject, Tags, VolumeFacts},
        marks::{self, SHARD_TAG},
    },
};

/// What a request is told that would have been allowed.
const DRY_RUN: &str = "DryRunOperation";
/// Of snapshots on one page; a snapshot has a handful of volumes.
const PAGE: i32 = 200;
/// EC2 takes so many.
const FILTER_VALUES_MAX: usize = 200;

#[derive(Debug)]
pub(super) struct Snapshots {
    options: EbsOptions,
    clients: Clients,
}

impl Snapshots {
    /// `shared`: the machine's AWS configuration, if the caller has read it.
    pub(super) fn new(options: EbsOptions, shared: Option<SdkConfig>) -> Snapshots {
        let (region, endpoint) = (options.region.clone(), options.endpoint.clone());
        let clients = match shared {
            Some(shared) => Clients::with(shared, region, endpoint),
            None => Clients::new(region, endpoint),
        };
        Snapshots { options, clients }
    }

    async fn home(&self) -> Result<(Client, String), CloudError> {
        let region = self.home_region().await.map_err(|error| CloudError {
            cause: Cause::Refused,
            error,
        })?;
        Ok((self.clients.of(&region).await, region))
    }

    /// All snapshots of a region that bear a tag with that value.
    async fn bearing(&self, (tag, value): (&str, &str), region: &str) -> Result<Vec<Made>, CloudError> {
        let call = call("DescribeSnapshots", format!("snapshots of {value}"), region);
        let filter = Filter::builder().name(format!("tag:{tag}")).values(value).build();
        let mut found = self.described(filter, region, &call).await?;
        // A filter's value may be a pattern, and what is found is perhaps deleted.
        found.retain(|made| made.tags.get(tag).is_some_and(|has| has == value));
        Ok(found)
    }

    async fn described(&self, filter: Filter, region: &str, call: &Call) -> Result<Vec<Made>, CloudError> {
        let client = self.clients.of(region).await;
        let asked = client.describe_snapshots().owner_ids("self").filters(filter);
        let mut pages = asked.into_paginator().page_size(PAGE).send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            for snapshot in page.map_err(|e| call.error(e))?.snapshots() {
                found.push(described(snapshot, call)?);
            }
        }
        Ok(found)
    }

    fn specification(&self, tags: &Tags) -> TagSpecification {
        let all: Tags = self
            .options
            .tags
            .iter()
            .chain(tags)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let tags = all.into_iter().map(|(k, v)| Tag::builder().key(k).value(v).build());
        TagSpecification::builder()
            .resource_type(ResourceType::Snapshot)
            .set_tags(Some(tags.collect()))
            .build()
    }

    /// For an encrypted snapshot; it is valid for others, too.
    async fn presigned(&self, snapshot_id: &str, from: &str, to: &str) -> anyhow::Result<String> {
        let credentials = self.clients.credentials().await?;
        let copy = presign::Copy { snapshot_id, from, to };
        presign::url(&copy, &self.clients.endpoint(from), credentials, SystemTime::now())
    }
}

fn call(action: &'static str, object: impl Into<String>, region: &str) -> Call {
    Call::new(Caller::Node, action, object, region)
}

#[async_trait]
impl Cloud for Snapshots {
    async fn home_region(&self) -> anyhow::Result<String> {
        self.clients.home_region().await.ok_or_else(|| {
            with_hint(
                anyhow!("the region of this server's volumes is not known"),
                "set region in the [ebs] section, or AWS_REGION",
            )
        })
    }

    async fn machine(&self) -> Option<String> {
        machine::instance_id().await
    }

    async fn facts(&self, volumes: &[String]) -> Result<Vec<VolumeFacts>, CloudError> {
        let (client, region) = self.home().await?;
        let call = call("DescribeVolumes", volumes.join(", "), &region);
        let sent = client.describe_volumes().set_volume_ids(Some(volumes.to_vec())).send().await;
        let found = sent.map_err(|e| call.error(e))?.volumes.unwrap_or_default();
        let facts = volumes.iter().map(|id| {
            let volume = found.iter().find(|v| v.volume_id() == Some(id));
            let volume = volume.ok_or_else(|| call.odd(&format!("does not tell of {id}")))?;
            Ok(VolumeFacts {
                volume_id: id.clone(),
                size_gib: volume.size().and_then(|size| u32::try_from(size).ok()).unwrap_or_default(),
                instance_id: volume.attachments().first().and_then(|a| a.instance_id()).map(str::to_owned),
                encrypted: volume.encrypted(),
                kms_key: volume.kms_key_id().map(str::to_owned),
            })
        });
        facts.collect()
    }

    async fn order(&self, volumes: &[VolumeFacts]) -> Result<Order, CloudError> {
        if let [one] = volumes {
            return Ok(Order::One(one.volume_id.clone()));
        }
        let (client, region) = self.home().await?;
        let ids: Vec<&str> = volumes.iter().map(|v| v.volume_id.as_str()).collect();
        let instance_id = volumes.first().and_then(|v| v.instance_id.clone());
        let Some(instance_id) = instance_id.filter(|id| volumes.iter().all(|v| v.instance_id.as_ref() == Some(id))) else {
            return Err(CloudError {
                cause: Cause::Refused,
                error: with_hint(
                    anyhow!(
                        "the volumes {} are not attached to one instance: no snapshot of one moment can be made of them",
                        ids.join(", ")
                    ),
                    "correct volumes in the [ebs] section",
                ),
            });
        };
        let call = call("DescribeInstances", &instance_id, &region);
        let sent = client.describe_instances().instance_ids(&instance_id).send().await;
        let answer = sent.map_err(|e| call.error(e))?;
        let mut instances = answer.reservations().iter().flat_map(|r| r.instances());
        let instance = instances.next().ok_or_else(|| call.odd("has no instance"))?;
        let mut order = (true, Vec::new());
        for device in instance.block_device_mappings() {
            let Some(volume_id) = device.ebs().and_then(|e| e.volume_id()) else {
                continue;
            };
            let (is_boot, is_wanted) = (device.device_name() == instance.root_device_name(), ids.contains(&volume_id));
            match (is_boot, is_wanted) {
                (true, wanted) => order.0 = !wanted,
                (false, false) => order.1.push(volume_id.to_owned()),
                (false, true) => {}
            }
        }
        Ok(Order::Several {
            instance_id,
            exclude_boot: order.0,
            exclude: order.1,
        })
    }

    async fn rehearse(&self, order: &Order) -> Result<(), CloudError> {
        let (client, region) = self.home().await?;
        // A specification without a tag is refused for that alone.
        let tags = self.specification(&Tags::from([(OPERATION_TAG.to_owned(), "rehearsal".to_owned())]));
        match order {
            Order::One(volume_id) => {
                let request = client.create_snapshot().volume_id(volume_id).tag_specifications(tags);
                match request.dry_run(true).send().await {
                    Err(e) if e.code() != Some(DRY_RUN) => Err(call("CreateSnapshot", volume_id, &region).error(e)),
                    _ => Ok(()),
                }
            }
            Order::Several { instance_id, .. } => {
                let request = client
                    .create_snapshots()
                    .instance_specification(specified(order))
                    .tag_specifications(tags);
                match request.dry_run(true).send().await {
                    Err(e) if e.code() != Some(DRY_RUN) => Err(call("CreateSnapshots", instance_id, &region).error(e)),
                    _ => Ok(()),
                }
            }
        }
    }

    async fn create(&self, order: &Order, subject: &Subject, limit: Duration) -> Result<Vec<Made>, CloudError> {
        let (client, region) = self.home().await?;
        match order {
            Order::One(volume_id) => {
                let call = call("CreateSnapshot", volume_id, &region);
                let sent = client
                    .create_snapshot()
                    .volume_id(volume_id)
                    .description(&subject.description)
                    .tag_specifications(self.specification(&subject.tags))
                    .customize()
                    .config_override(once_within(limit))
                    .send()
                    .await;
                let answer = sent.map_err(|e| call.error(e))?;
                let snapshot_id = answer.snapshot_id.ok_or_else(|| call.odd("names no snapshot"))?;
                Ok(vec![Made {
                    snapshot_id,
                    volume_id: answer.volume_id.unwrap_or_default(),
                    description: answer.description.unwrap_or_default(),
                    started_at_us: micros(answer.start_time.as_ref()),
                    state: state(answer.state.as_ref(), answer.state_message.as_deref()),
                    percent: percent(answer.progress.as_deref()),
                    encrypted: answer.encrypted,
                    kms_key: answer.kms_key_id,
                    tags: Tags::new(),
                }])
            }
            Order::Several { instance_id, .. } => {
                let call = call(
                    "CreateSnapshots",
                    format!("{} of {instance_id}", subject.volumes.join(", ")),
                    &region,
                );
                let sent = client
                    .create_snapshots()
                    .instance_specification(specified(order))
                    .description(&subject.description)
                    .tag_specifications(self.specification(&subject.tags))
                    .customize()
                    .config_override(once_within(limit))
                    .send()
                    .await;
                let answer = sent.map_err(|e| call.error(e))?;
                answer.snapshots().iter().map(|s| begun(s, &call)).collect()
            }
        }
    }

    async fn find(&self, region: &str, operation: &str) -> Result<Vec<Made>, CloudError> {
        self.bearing((OPERATION_TAG, operation), region).await
    }

    async fn copy(&self, snapshot_id: &str, region: &str, tags: &Tags) -> Result<String, CloudError> {
        let (client, (_, home)) = (self.clients.of(region).await, self.home().await?);
        let call = call("CopySnapshot", format!("{snapshot_id} from {home}"), region);
        let presigned = self.presigned(snapshot_id, &home, region).await.map_err(|error| CloudError {
            cause: Cause::Refused,
            error: with_hint(
                error.context(format!("the copy of {snapshot_id} to {region} cannot be signed")),
                "check the AWS configuration of the user that runs mysql-pitr",
            ),
        })?;
        let key = self
            .options
            .dr_kms_key
            .clone()
            .filter(|_| self.options.dr_region.as_deref() == Some(region));
        let mut tags = tags.clone();
        tags.insert(SOURCE_TAG.to_owned(), snapshot_id.to_owned());
        let sent = client
            .copy_snapshot()
            .source_region(&home)
            .source_snapshot_id(snapshot_id)
            .presigned_url(presigned)
            .description(marks::copy_description(snapshot_id, &home))
            // A key alone would be refused.
            .set_encrypted(key.is_some().then_some(true))
            .set_kms_key_id(key)
            .tag_specifications(self.specification(&tags))
            // Repeated by whoever asked for it, who looks first whether there is one: there is no token that would tell two apart.
            .customize()
            .config_override(once())
            .send()
            .await;
        let answer = sent.map_err(|e| call.error(e))?;
        answer.snapshot_id.ok_or_else(|| call.odd("names no snapshot"))
    }

    async fn of_shard(&self, region: &str, shard: &str) -> Result<Vec<Made>, CloudError> {
        self.bearing((SHARD_TAG, shard), region).await
    }

    async fn named(&self, region: &str, snapshot_ids: &[String]) -> Result<Vec<Made>, CloudError> {
        let mut found = Vec::new();
        for ids in snapshot_ids.chunks(FILTER_VALUES_MAX) {
            let call = call("DescribeSnapshots", ids.join(", "), region);
            // By a filter: asked for an id that is not there, EC2 would tell of none.
            let filter = Filter::builder().name("snapshot-id").set_values(Some(ids.to_vec())).build();
            found.extend(self.described(filter, region, &call).await?);
        }
        Ok(found)
    }

    async fn rehearse_delete(&self, region: &str, snapshot_id: &str) -> Result<(), CloudError> {
        let client = self.clients.of(region).await;
        match client.delete_snapshot().snapshot_id(snapshot_id).dry_run(true).send().await {
            Err(e) if e.code() != Some(DRY_RUN) => match call("DeleteSnapshot", snapshot_id, region).error(e) {
                gone if gone.cause == Cause::Missing => Ok(()),
                e => Err(e),
            },
            _ => Ok(()),
        }
    }

    async fn delete(&self, region: &str, snapshot_id: &str) -> Result<(), CloudError> {
        let client = self.clients.of(region).await;
        let call = call("DeleteSnapshot", snapshot_id, region);
        match client
            .delete_snapshot()
            .snapshot_id(snapshot_id)
            .send()
            .await
            .map_err(|e| call.error(e))
        {
            Err(e) if e.cause == Cause::Missing => Ok(()),
            done => done.map(|_| ()),
        }
    }
}

fn specified(order: &Order) -> InstanceSpecification {
    let which = InstanceSpecification::builder();
    match order {
        Order::One(_) => which.build(),
        Order::Several {
            instance_id,
            exclude_boot,
            exclude,
        } => which
            .instance_id(instance_id)
            .exclude_boot_volume(*exclude_boot)
            .set_exclude_data_volume_ids((!exclude.is_empty()).then(|| exclude.clone()))
            .build(),
    }
}
