//! The REST API: presence of a stream, and publications.

use serde_json::{Value, json};

use super::Difference;
use super::side::{EXTENDED, Side, command};
use crate::support::http::request;
use crate::support::keys;

const USERS: &str = "/api/presence/stream:A/users";

pub fn script(side: &mut Side) {
    let token = format!("Bearer {}", keys::api_token(keys::SECRET));
    let authorized = [("Authorization", token.as_str())];
    side.note_request("nobody", "GET", USERS, &authorized, "");
    let mut clients = Vec::new();
    for id in ["1", "2"] {
        let (mut client, _) = side.open("/cable", EXTENDED);
        client.subscribe("A");
        client.send(
            &command(
                "join",
                "presence",
                json!({ "id": id, "info": { "name": id } }),
            )
            .to_string(),
        );
        side.settle(&format!("join {id}"), "stream:A", [&mut client]);
        clients.push(client);
    }
    note_members(side, "two members", USERS, &authorized);
    for (step, target) in [
        ("an encoded name", "/api/presence/stream%3AA/users"),
        ("a query", "/api/presence/stream:A/users?a=b"),
        ("an encoded slash", "/api/presence/a%2Fb/users"),
        ("a slash", "/api/presence/a/b/users"),
        ("no name", "/api/presence//users"),
        ("no users", "/api/presence/stream:A"),
        ("users with a slash", "/api/presence/stream:A/users/"),
        ("more", "/api/presence/stream:A/users/1"),
        ("another word", "/api/presence/stream:A/members"),
        ("presence alone", "/api/presence"),
        ("presence with a slash", "/api/presence/"),
        ("an unknown stream", "/api/presence/none/users"),
    ] {
        if ["an encoded name", "a query"].contains(&step) {
            note_members(side, step, target, &authorized);
        } else {
            side.note_request(step, "GET", target, &authorized, "");
        }
    }
    let wrong = [("Authorization", "Bearer wrong")];
    let lower = token.replace("Bearer", "bearer");
    for (step, method, headers) in [
        ("no token", "GET", &[][..]),
        ("a wrong token", "GET", &wrong[..]),
        (
            "another case",
            "GET",
            &[("Authorization", lower.as_str())][..],
        ),
        ("HEAD", "HEAD", &authorized[..]),
        ("POST", "POST", &authorized[..]),
        ("DELETE", "DELETE", &authorized[..]),
        ("OPTIONS", "OPTIONS", &authorized[..]),
        ("POST without a token", "POST", &[][..]),
    ] {
        side.note_request(step, method, USERS, headers, "");
    }
    publications(side, &authorized);
}

fn publications(side: &mut Side, authorized: &[(&str, &str)]) {
    let good = json!({ "stream": "stream:A", "data": "1" }).to_string();
    for (step, body) in [
        ("publish", good.as_str()),
        ("publish rubbish", "rubbish"),
        ("publish nothing", ""),
        ("publish an empty list", "[]"),
        ("publish an unknown object", r#"{"a":1}"#),
    ] {
        side.note_request(step, "POST", "/api/publish", authorized, body);
    }
    for method in ["GET", "PUT", "OPTIONS"] {
        side.note_request(
            &format!("publish by {method}"),
            method,
            "/api/publish",
            authorized,
            "",
        );
    }
    side.note_request(
        "publish without a token",
        "POST",
        "/api/publish",
        &[],
        &good,
    );
    side.note_request(
        "publish with a slash",
        "POST",
        "/api/publish/",
        authorized,
        &good,
    );
    side.note_request("an unknown path", "GET", "/api/unknown", authorized, "");
    side.note_request("the API itself", "GET", "/api", authorized, "");
}

/// The order of records is not defined.
fn note_members(side: &mut Side, step: &str, target: &str, headers: &[(&str, &str)]) {
    let response =
        request(side.stage.server.address(), "GET", target, headers, b"").expect("an answer");
    let mut body: Value = serde_json::from_slice(&response.body).expect("JSON");
    let records = body["records"].as_array_mut().expect("members");
    records.sort_by_key(|record| record["id"].to_string());
    let kind = response.header("content-type").unwrap_or("-").to_owned();
    side.note(step, &format!("{} {kind} {body}", response.status));
}

pub const DIFFERENCES: &[Difference] = &[Difference {
    step: "an encoded slash",
    reference: "404 - ",
    ringcable: r#"200 application/json {"type":"info","total":0}"#,
    row: "`%2F` in the name of a stream at the presence endpoint",
}];
