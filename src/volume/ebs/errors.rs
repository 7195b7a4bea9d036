//! What the answers of EC2 mean. The one place that knows its error codes.

use std::{error::Error, fmt};

use anyhow::anyhow;
use aws_sdk_ec2::{
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId,
};

use crate::{
    support::hint::with_hint,
    volume::cloud::{Cause, CloudError},
};

/// Who asks: it decides whose permissions are lacking, and where to correct what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// A database node, which snapshots its volumes.
    Node,
    /// A recovery, which makes volumes from snapshots.
    Recovery,
}

impl Caller {
    fn role(self) -> &'static str {
        match self {
            Caller::Node => "this node's role",
            Caller::Recovery => "the role that this recovery runs under",
        }
    }

    fn section(self) -> &'static str {
        match self {
            Caller::Node => "[ebs]",
            Caller::Recovery => "[recover.volume]",
        }
    }

    /// What follows where it may go well another time.
    fn again(self) -> &'static str {
        match self {
            Caller::Node => "nothing: it is tried again",
            Caller::Recovery => "give the same command again",
        }
    }
}

/// What was asked for.
#[derive(Debug, Clone)]
pub(super) struct Call {
    caller: Caller,
    /// As IAM calls it, without `ec2:`.
    action: &'static str,
    /// What it is about, e.g. `vol-0123`.
    object: String,
    region: String,
}

/// An answer that is no success.
#[derive(Debug, Default)]
struct Answer {
    code: String,
    message: String,
    request_id: Option<String>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.code)?;
        // What is said of a refusal may be a kilobyte of ciphertext.
        let said = self.message.split("Encoded authorization failure message").next();
        let said = said.unwrap_or_default().trim().trim_end_matches('.');
        if !said.is_empty() {
            write!(f, ": {said}")?;
        }
        match &self.request_id {
            Some(id) => write!(f, " (request {id})"),
            None => Ok(()),
        }
    }
}

impl Call {
    pub(super) fn new(caller: Caller, action: &'static str, object: impl Into<String>, region: &str) -> Call {
        Call {
            caller,
            action,
            object: object.into(),
            region: region.to_owned(),
        }
    }

    pub(super) fn error<E>(&self, error: SdkError<E>) -> CloudError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        match &error {
            SdkError::ServiceError(service) => {
                let metadata = service.err().meta();
                let Some(code) = metadata.code().filter(|code| !code.is_empty()) else {
                    let said = anyhow!("status {}: {}", service.raw().status().as_u16(), text(&error));
                    return self.fail(Cause::Unanswered, said, self.caller.again());
                };
                let meaning = self.meaning(&Answer {
                    code: code.to_owned(),
                    message: metadata.message().unwrap_or_default().to_owned(),
                    request_id: metadata
                        .request_id()
                        .or_else(|| service.raw().body().bytes().and_then(request_id))
                        .map(str::to_owned),
                });
                // A server that fails may have done it.
                let is_undone = meaning.cause != Cause::Refused || !service.raw().status().is_server_error();
                let cause = if is_undone { meaning.cause } else { Cause::Unanswered };
                CloudError { cause, ..meaning }
            }
            // Not sent: there were no credentials, or no request could be made of it.
            SdkError::ConstructionFailure(_) => {
                let hint = format!("check the {} section", self.caller.section());
                self.fail(Cause::Refused, anyhow!(text(&error)), hint)
            }
            // A connection that broke before the answer is of the same kind as credentials that could not be had.
            SdkError::DispatchFailure(failure)
                if failure.is_user() || failure.is_other() && text(&error).to_lowercase().contains("credentials") =>
            {
                self.fail(
                    Cause::Refused,
                    anyhow!(text(&error)),
                    "see that this machine has an instance role, or access keys in the AWS configuration of the user that runs mysql-pitr",
                )
            }
            _ => self.fail(
                Cause::Unanswered,
                anyhow!(text(&error)),
                "see whether this machine reaches EC2: a route, a NAT gateway or an interface endpoint for ec2",
            ),
        }
    }

    /// It was carried out, and nobody knows what came of it.
    pub(super) fn odd(&self, what: &str) -> CloudError {
        self.fail(
            Cause::Unanswered,
            anyhow!("the answer {what}"),
            "look at it with the AWS command line",
        )
    }

    fn fail(&self, cause: Cause, error: anyhow::Error, hint: impl Into<String>) -> CloudError {
        let what = format!("ec2:{} of {} in {} failed", self.action, self.object, self.region);
        CloudError {
            cause,
            error: with_hint(error.context(what), hint),
        }
    }

    fn meaning(&self, answer: &Answer) -> CloudError {
        let Call {
            caller, object, region, ..
        } = self;
        let section = caller.section();
        let (cause, hint) = match answer.code.trim_start_matches("Client.") {
            "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" => (Cause::Refused, self.permission()),
            // EC2 says the same of both.
            "RequestExpired" => (
                Cause::Refused,
                "see that the credentials have not expired, and that this machine's clock is right".to_owned(),
            ),
            "RequestTimeTooSkewed" | "InvalidSignatureException" => (Cause::Refused, clock()),
            "SignatureDoesNotMatch" if is_of_time(&answer.message) => (Cause::Refused, clock()),
            "ExpiredToken" | "ExpiredTokenException" => (
                Cause::Refused,
                "renew the credentials; those of an instance role renew themselves, those of a login do not".to_owned(),
            ),
            "AuthFailure" | "InvalidClientTokenId" | "UnrecognizedClientException" | "SignatureDoesNotMatch" => (
                Cause::Refused,
                format!(
                    "check the access keys of the user that runs mysql-pitr, that the clock is right, and that {region} is enabled"
                ),
            ),
            "RequestLimitExceeded"
            | "Throttling"
            | "ThrottlingException"
            | "EC2ThrottledException"
            | "SnapshotCreationPerVolumeRateExceeded" => (
                Cause::Throttled,
                format!(
                    "{}; if it goes on, see who else calls EC2 in this account and region",
                    caller.again()
                ),
            ),
            "InvalidVolume.NotFound" | "InvalidVolumeID.Malformed" if self.is_of_a_volume() => {
                let hint = match caller {
                    Caller::Node => {
                        format!("see that {object} exists in {region}, and correct volumes and region in the {section} section")
                    }
                    Caller::Recovery => "somebody deleted it: give the same command with --restart".to_owned(),
                };
                (Cause::Missing, hint)
            }
            "InvalidVolume.ZoneMismatch" | "InvalidZone.NotFound" => (
                Cause::Refused,
                format!(
                    "a volume can be attached in its own availability zone only: correct availability_zone in the {section} section, or leave it out"
                ),
            ),
            "InvalidSnapshot.NotFound" => {
                let hint = match caller {
                    Caller::Node => format!("somebody deleted {object}; take another snapshot"),
                    Caller::Recovery => "the archive's record names a snapshot that is gone: recover from another one".to_owned(),
                };
                (Cause::Missing, hint)
            }
            code if self.action == "DeleteSnapshot" && is_held(code, &answer.message) => (
                Cause::Held,
                "nothing: it may be deleted once nothing holds it any more".to_owned(),
            ),
            "InvalidInstanceID.NotFound" => (Cause::Missing, format!("see that {object} exists in {region}")),
            "ResourceLimitExceeded"
            | "SnapshotLimitExceeded"
            | "ConcurrentSnapshotLimitExceeded"
            | "PendingSnapshotLimitExceeded" => (
                Cause::Throttled,
                format!("delete snapshots that nobody needs, or have the quota raised in {region}"),
            ),
            "VolumeLimitExceeded" | "MaxIOPSLimitExceeded" => (
                Cause::Refused,
                format!("have the quota raised in {region}, or ask for less in the {section} section"),
            ),
            code if is_of_a_key(code, &answer.message) => (
                Cause::Refused,
                format!(
                    "see that the KMS key is enabled in {region}, and that its policy lets {} use it",
                    caller.role()
                ),
            ),
            "OptInRequired" => (Cause::Refused, format!("enable the region {region} for this account")),
            // Server errors: the request may have been carried out.
            "InternalError" | "InternalFailure" | "ServiceUnavailable" | "Unavailable" | "RequestTimeout" => {
                (Cause::Unanswered, caller.again().to_owned())
            }
            _ => (Cause::Refused, "look the code up in EC2's documentation".to_owned()),
        };
        self.fail(cause, anyhow!("{answer}"), hint)
    }

    fn is_of_a_volume(&self) -> bool {
        self.object.contains("vol-")
    }

    fn permission(&self) -> String {
        let Call {
            caller, action, object, ..
        } = self;
        let role = caller.role();
        // `snap-0123 from eu-west-1`
        let object = object.split(" from ").next().unwrap_or_default();
        match *action {
            // Such actions know no resources.
            describe if describe.starts_with("Describe") => format!("allow ec2:{action} on * to {role}"),
            "CreateSnapshot" | "CreateSnapshots" => {
                format!("allow ec2:{action} on {object} and on new snapshots to {role}, and ec2:CreateTags for this action")
            }
            "CopySnapshot" => format!(
                "allow ec2:{action} on {object} to {role}, ec2:CreateTags for this action, and the use of the KMS keys of both regions"
            ),
            "CreateVolume" => format!(
                "allow ec2:{action} on {object} and on new volumes to {role}, ec2:CreateTags for this action, and the use of the KMS key"
            ),
            "AttachVolume" | "DetachVolume" => format!("allow ec2:{action} on {object} and on this instance to {role}"),
            _ => format!("allow ec2:{action} on {object} to {role}"),
        }
    }
}

fn clock() -> String {
    "set this machine's clock (chronyc tracking, timedatectl): EC2 refuses requests that are signed with a time more than 5 minutes off".to_owned()
}

/// `Signature expired: … is now earlier than …`, `Signature not yet current: …`
fn is_of_time(message: &str) -> bool {
    ["Signature expired", "Signature not yet current"]
        .iter()
        .any(|text| message.contains(text))
}

/// By an image (AMI), or by a lock. For the latter EC2's documentation has no code.
fn is_held(code: &str, message: &str) -> bool {
    let is_of_a_lock = |text: &str| text.to_lowercase().contains("locked");
    code == "InvalidSnapshot.InUse" || is_of_a_lock(code) || is_of_a_lock(message)
}

/// KMS's refusals come in its own words, or in those that each service of AWS has for them.
fn is_of_a_key(code: &str, message: &str) -> bool {
    let is_of_kms = |text: &str| text.to_lowercase().contains("kms");
    is_of_kms(code) || code == "DisabledException" || code.starts_with("InvalidParameter") && is_of_kms(message)
}

/// What the text of an error says where its headers do not.
fn request_id(body: &[u8]) -> Option<&str> {
    let (_, rest) = std::str::from_utf8(body).ok()?.split_once("<RequestID>")?;
    Some(rest.split_once("</RequestID>")?.0.trim()).filter(|id| !id.is_empty())
}

/// An error's chain; the SDK's own outermost text says only that something failed.
fn text(error: &(dyn Error + 'static)) -> String {
    let mut layers = Vec::new();
    let mut next = Some(error);
    while let Some(layer) = next {
        layers.push(layer.to_string());
        next = layer.source();
    }
    layers.dedup();
    layers.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::hint::render;

    fn meaning(action: &'static str, object: &str, code: &str, message: &str) -> (Cause, String) {
        of(Caller::Node, action, object, code, message)
    }

    fn of(caller: Caller, action: &'static str, object: &str, code: &str, message: &str) -> (Cause, String) {
        let e = Call::new(caller, action, object, "eu-west-1").meaning(&Answer {
            code: code.to_owned(),
            message: message.to_owned(),
            request_id: Some("r-1".to_owned()),
        });
        (e.cause, render(&e.error))
    }

    #[test]
    fn a_refusal_names_the_action_and_the_object() {
        let long = "You are not authorized to perform this operation. Encoded authorization failure message: abcdef";
        for (caller, action, object, role) in [
            (Caller::Node, "CreateSnapshot", "vol-0a", "this node's role"),
            (Caller::Node, "CreateSnapshots", "vol-0a", "this node's role"),
            (Caller::Node, "CopySnapshot", "vol-0a", "this node's role"),
            (Caller::Node, "DeleteSnapshot", "vol-0a", "this node's role"),
            (
                Caller::Recovery,
                "CreateVolume",
                "vol-0a",
                "the role that this recovery runs under",
            ),
            (
                Caller::Recovery,
                "DetachVolume",
                "vol-0a",
                "the role that this recovery runs under",
            ),
            // Of what only looks, no policy can name the object.
            (Caller::Node, "DescribeVolumes", "*", "this node's role"),
            (
                Caller::Recovery,
                "DescribeVolumes",
                "*",
                "the role that this recovery runs under",
            ),
        ] {
            let (cause, text) = of(caller, action, "vol-0a", "UnauthorizedOperation", long);
            assert_eq!(cause, Cause::Refused);
            assert!(text.contains(&format!("hint: allow ec2:{action} on {object}")), "{text}");
            assert!(text.contains(&format!(" to {role}")), "{text}");
            assert!(text.contains("(request r-1)") && !text.contains("abcdef"), "{text}");
        }
    }

    #[test]
    fn what_something_else_holds_is_no_refusal() {
        let held = [
            ("InvalidSnapshot.InUse", "The snapshot snap-1 is currently in use by ami-1"),
            (
                "OperationNotPermitted",
                "The snapshot snap-1 is locked and cannot be deleted.",
            ),
            ("SnapshotLocked", ""),
        ];
        for (code, message) in held {
            assert_eq!(meaning("DeleteSnapshot", "snap-1", code, message).0, Cause::Held, "{code}");
            assert_eq!(meaning("CopySnapshot", "snap-1", code, message).0, Cause::Refused, "{code}");
        }
        let denied = meaning("DeleteSnapshot", "snap-1", "UnauthorizedOperation", "");
        assert_eq!(denied.0, Cause::Refused);
    }

    #[test]
    fn what_looks_alike_is_told_apart() {
        for (code, message, cause, why) in [
            (
                "RequestExpired",
                "Request has expired.",
                Cause::Refused,
                "the credentials have not expired, and that this machine's clock",
            ),
            (
                "SignatureDoesNotMatch",
                "Signature not yet current: 20261121T101000Z is still later than 20261121T100000Z",
                Cause::Refused,
                "set this machine's clock",
            ),
            ("SignatureDoesNotMatch", "", Cause::Refused, "check the access keys"),
            ("ExpiredToken", "", Cause::Refused, "renew the credentials"),
            (
                "RequestLimitExceeded",
                "Request limit exceeded.",
                Cause::Throttled,
                "tried again",
            ),
            (
                "InvalidVolume.NotFound",
                "The volume 'vol-0a' does not exist.",
                Cause::Missing,
                "see that vol-0a exists",
            ),
            ("InternalError", "", Cause::Unanswered, "tried again"),
            ("AuthFailure", "", Cause::Refused, "check the access keys"),
            ("Client.InvalidKMSKey.InvalidState", "", Cause::Refused, "KMS key is enabled"),
            (
                "InvalidParameterValue",
                "The specified KMS key is not accessible",
                Cause::Refused,
                "KMS key is enabled",
            ),
            (
                "InvalidParameterValue",
                "Value () is invalid",
                Cause::Refused,
                "look the code up",
            ),
        ] {
            let (told, text) = meaning("CreateSnapshot", "vol-0a", code, message);
            assert_eq!(told, cause, "{text}");
            assert!(text.contains(why), "{text}");
        }
    }
}
