//! An answer that was cut short on its way is none.
//!
//! The SDK takes XML that ends early for all there was. A list of snapshots that ends early would say that some are gone: they would be made
//! again, and nobody would delete those.

use aws_sdk_ec2::{
    config::{ConfigBag, Intercept, RuntimeComponents, interceptors::AfterDeserializationInterceptorContextRef},
    error::BoxError,
};

/// Looks at every answer that is a success.
#[derive(Debug)]
pub(super) struct Whole;

impl Intercept for Whole {
    fn name(&self) -> &'static str {
        "Whole"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        match response.body().bytes() {
            Some(body) if response.status().is_success() && !is_whole(&String::from_utf8_lossy(body)) => {
                Err("the answer is cut short".into())
            }
            _ => Ok(()),
        }
    }
}

/// Whether XML ends with its root.
fn is_whole(xml: &str) -> bool {
    let body = match xml.trim().strip_prefix("<?") {
        Some(rest) => rest.split_once("?>").map_or("", |(_, body)| body.trim_start()),
        None => xml.trim(),
    };
    let Some(root) = body.strip_prefix('<') else { return false };
    let name = &root[..root
        .find(|c: char| c.is_whitespace() || "/>".contains(c))
        .unwrap_or(root.len())];
    let is_empty = root.ends_with("/>") && root.matches('<').count() == 0;
    is_empty || !name.is_empty() && body.ends_with(&format!("</{name}>"))
}

#[cfg(test)]
mod tests {
    use super::is_whole;

    #[test]
    fn an_answer_is_whole_up_to_its_last_byte_and_not_before() {
        let whole = "<?xml version=\"1.0\"?>\n<DescribeSnapshotsResponse xmlns=\"http://ec2\"><snapshotSet><item><a>1</a></item></snapshotSet>\
                     </DescribeSnapshotsResponse>\n";
        for end in 0..whole.trim_end().len() {
            assert!(!is_whole(&whole[..end]), "{}", &whole[..end]);
        }
        assert!(is_whole(whole) && is_whole(whole.trim_end()));
        assert!(is_whole("<DeleteSnapshotResponse/>") && !is_whole("<A><B/>"));
    }
}
