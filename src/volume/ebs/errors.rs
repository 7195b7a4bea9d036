//! What the answers of EC2 mean. The one place that knows its error codes.

use std::error::Error;

use anyhow::anyhow;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};

use crate::{
    support::hint::with_hint,
    volume::cloud::{Cause, CloudError},
};

/// What was asked for.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// As IAM calls it, without `ec2:`.
    pub action: &'static str,
    /// What it is about, e.g. `vol-0123`.
    pub object: String,
    pub region: String,
}

/// An answer that is no success.
#[derive(Debug, Default)]
struct Answer {
    code: String,
    message: String,
}

impl Call {
    pub(super) fn error<E>(&self, error: SdkError<E>) -> CloudError
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        match &error {
            SdkError::ServiceError(service) => {
                let metadata = service.err().meta();
                let Some(code) = metadata.code().filter(|code| !code.is_empty()) else {
                    let said = anyhow!("status {}: {}", service.raw().status().as_u16(), text(&error));
                    return self.fail(Cause::Unanswered, said, "nothing: it is tried again");
                };
                let meaning = self.meaning(Answer {
                    code: code.to_owned(),
                    message: metadata.message().unwrap_or_default().to_owned(),
                });
                // A server that fails may have done it.
                let is_undone = meaning.cause != Cause::Refused || !service.raw().status().is_server_error();
                let cause = if is_undone { meaning.cause } else { Cause::Unanswered };
                CloudError { cause, ..meaning }
            }
            // Not sent: there were no credentials, or no request could be made of it.
            SdkError::ConstructionFailure(_) => self.fail(Cause::Refused, anyhow!(text(&error)), "check the [ebs] section"),
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

    fn meaning(&self, answer: Answer) -> CloudError {
        let Answer { code, message } = answer;
        // What is said of a refusal may be a kilobyte of ciphertext.
        let said = message
            .split("Encoded authorization failure message")
            .next()
            .unwrap_or_default();
        let said = said.trim().trim_end_matches('.');
        let error = if said.is_empty() {
            anyhow!("{code}")
        } else {
            anyhow!("{code}: {said}")
        };
        let Call { object, region, .. } = self;
        let (cause, hint) = match code.as_str() {
            "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" | "Client.UnauthorizedOperation" => {
                (Cause::Refused, self.permission())
            }
            "RequestExpired" | "RequestTimeTooSkewed" | "InvalidSignatureException" => (
                Cause::Refused,
                "set this machine's clock: EC2 refuses requests that are signed with a time more than 5 minutes off".to_owned(),
            ),
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
            "RequestLimitExceeded" | "Throttling" | "ThrottlingException" | "SnapshotCreationPerVolumeRateExceeded" => (
                Cause::Throttled,
                "nothing: it is tried again; if it goes on, see who else calls EC2 in this account and region".to_owned(),
            ),
            "InvalidVolume.NotFound" | "InvalidVolumeID.Malformed" if self.is_of_a_volume() => (
                Cause::Missing,
                format!("see that {object} exists in {region}, and correct volumes and region in the [ebs] section"),
            ),
            "InvalidSnapshot.NotFound" => (
                Cause::Missing,
                format!("somebody deleted {object} in {region}; take another snapshot"),
            ),
            "InvalidInstanceID.NotFound" => (Cause::Missing, format!("see that {object} exists in {region}")),
            "ResourceLimitExceeded"
            | "SnapshotLimitExceeded"
            | "ConcurrentSnapshotLimitExceeded"
            | "PendingSnapshotLimitExceeded" => (
                Cause::Throttled,
                format!("delete snapshots that nobody needs, or have the quota raised in {region}"),
            ),
            "InvalidKMSKey.InvalidState" | "KMSKeyNotAccessibleFault" | "DisabledException" | "InvalidParameterDependency" => (
                Cause::Refused,
                format!("see that the KMS key is enabled in {region}, and that its policy lets this node's role use it"),
            ),
            "OptInRequired" => (Cause::Refused, format!("enable the region {region} for this account")),
            // Server errors: the request may have been carried out.
            "InternalError" | "InternalFailure" | "ServiceUnavailable" | "Unavailable" | "RequestTimeout" => {
                (Cause::Unanswered, "nothing: it is tried again".to_owned())
            }
            _ => (Cause::Refused, "look the code up in EC2's documentation".to_owned()),
        };
        self.fail(cause, error, hint)
    }

    fn is_of_a_volume(&self) -> bool {
        self.object.contains("vol-")
    }

    fn permission(&self) -> String {
        let Call { action, object, .. } = self;
        match *action {
            // Such actions know no resources.
            describe if describe.starts_with("Describe") => format!("allow ec2:{action} on * to this node's role"),
            "CreateSnapshot" | "CreateSnapshots" => {
                format!(
                    "allow ec2:{action} on {object} and on new snapshots to this node's role, and ec2:CreateTags for this action"
                )
            }
            "CopySnapshot" => format!(
                "allow ec2:{action} on {object} to this node's role, ec2:CreateTags for this action, and the use of the KMS keys of both regions"
            ),
            _ => format!("allow ec2:{action} on {object} to this node's role"),
        }
    }
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
        let call = Call {
            action,
            object: object.to_owned(),
            region: "eu-west-1".to_owned(),
        };
        let e = call.meaning(Answer {
            code: code.to_owned(),
            message: message.to_owned(),
        });
        (e.cause, render(&e.error))
    }

    #[test]
    fn a_refusal_names_the_action_and_the_object() {
        for action in ["CreateSnapshot", "CreateSnapshots", "DeleteSnapshot", "CopySnapshot"] {
            let long = "You are not authorized to perform this operation. Encoded authorization failure message: abcdef";
            let (cause, text) = meaning(action, "vol-0a", "UnauthorizedOperation", long);
            assert_eq!(cause, Cause::Refused);
            // Of what only looks, no policy can name the object.
            let object = if action.starts_with("Describe") { "*" } else { "vol-0a" };
            assert!(text.contains(&format!("hint: allow ec2:{action} on {object}")), "{text}");
            assert!(!text.contains("abcdef"), "{text}");
        }
        let (_, text) = meaning("DescribeVolumes", "vol-0a", "UnauthorizedOperation", "");
        assert!(text.contains("hint: allow ec2:DescribeVolumes on * to"), "{text}");
    }

    #[test]
    fn what_looks_alike_is_told_apart() {
        for (code, message, cause, why) in [
            (
                "RequestExpired",
                "Request has expired.",
                Cause::Refused,
                "set this machine's clock",
            ),
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
            ("InvalidKMSKey.InvalidState", "", Cause::Refused, "KMS key is enabled"),
        ] {
            let (told, text) = meaning("CreateSnapshot", "vol-0a", code, message);
            assert_eq!(told, cause, "{text}");
            assert!(text.contains(why), "{text}");
        }
    }
}
