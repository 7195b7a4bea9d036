//! An instance's metadata service, version 2: nothing without a token.

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, put},
};

use super::Machine;

const TOKEN: &str = "a-token-of-the-stand-in";
const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";

pub fn router(machine: Machine) -> Router {
    let token = || async { ([(TTL_HEADER, "21600")], TOKEN) };
    Router::new()
        .route("/latest/api/token", put(token))
        .route("/latest/{*path}", get(answer))
        .with_state(machine)
}

async fn answer(State(machine): State<Machine>, Path(path): Path<String>, headers: HeaderMap) -> Response {
    if headers.get("x-aws-ec2-metadata-token").is_none_or(|t| t != TOKEN) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Machine { id, region, zone, .. } = machine;
    match path.as_str() {
        "meta-data/instance-id" => id.into_response(),
        "meta-data/placement/region" => region.into_response(),
        "meta-data/placement/availability-zone" => zone.into_response(),
        "dynamic/instance-identity/document" => {
            serde_json::json!({ "instanceId": id, "region": region, "availabilityZone": zone })
                .to_string()
                .into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
