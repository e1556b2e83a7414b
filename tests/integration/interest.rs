//! A publication goes only to the shards that may have a listener, and reaches everybody who has read a confirmation.

use serde_json::{Value, json};

use crate::support::wait::until;
use crate::support::{Cable, Driver, Stage};

const SHARDS: usize = 4;

/// Public streams, so that clients choose theirs.
fn stage(driver: Driver) -> Stage {
    Stage::with(
        driver,
        &["--cores=4", "--norpc", "--public", "--public_streams"],
    )
}

fn identifier(room: &str) -> String {
    json!({ "channel": "$pubsub", "stream_name": room }).to_string()
}

fn listen(client: &mut Cable, room: &str) {
    client.command("subscribe", &identifier(room));
    let answer = client.next_json();
    assert_eq!(answer["type"], "confirm_subscription", "{answer}");
}

/// The sum over all shards of a metric of this server.
fn sum(stage: &Stage, name: &str) -> i64 {
    values(stage, name).iter().sum()
}

fn values(stage: &Stage, name: &str) -> Vec<i64> {
    let page = stage.server.get("/metrics").text();
    let prefix = format!("ringcable_{name}{{shard=");
    let lines = page.lines().filter(|line| line.starts_with(&prefix));
    let value = |line: &str| line.rsplit(' ').next()?.parse().ok();
    let values: Vec<i64> = lines.filter_map(value).collect();
    assert_eq!(values.len(), SHARDS, "no {name} in\n{page}");
    values
}

/// Bytes of the table of interest.
fn table_bytes(stage: &Stage) -> i64 {
    let page = stage.server.get("/metrics").text();
    let mut lines = page.lines();
    let value = lines.find_map(|line| line.strip_prefix("ringcable_interest_bytes "));
    value.expect("the metric").parse().expect("a number")
}

/// How many inboxes got what `publish` publishes.
fn handed(stage: &Stage, publish: impl FnOnce()) -> i64 {
    let before = sum(stage, "publications_handed_total");
    publish();
    sum(stage, "publications_handed_total") - before
}

/// Clients until every shard has one.
fn clients_everywhere(stage: &Stage) -> Vec<Cable> {
    let mut clients = Vec::new();
    while clients.len() < 256 {
        clients.push(Cable::to(&stage.server).welcomed());
        if values(stage, "sessions_num").iter().all(|&shard| shard > 0) {
            return clients;
        }
    }
    panic!("256 clients, and a shard has none");
}

on_both_drivers! {
    fn a_publication_for_one_room_does_not_reach_the_other_inboxes(driver: Driver) {
        let stage = stage(driver);
        let mut clients = clients_everywhere(&stage);
        for (number, client) in clients.iter_mut().enumerate() {
            listen(client, "all");
            listen(client, &format!("room {number}"));
        }
        assert_eq!(handed(&stage, || stage.publish("all", "1")), SHARDS as i64);
        for client in &mut clients {
            assert_eq!(client.next_json()["message"], 1);
        }
        let rooms = clients.len() as i64;
        let one_by_one = handed(&stage, || {
            for (number, client) in clients.iter_mut().enumerate() {
                stage.publish(&format!("room {number}"), "2");
                assert_eq!(client.next_json()["message"], 2);
            }
        });
        // Two rooms may be in the same bucket by chance, but not many.
        assert!((rooms..=rooms + 3).contains(&one_by_one), "{one_by_one} for {rooms} rooms");
        let to_nobody = handed(&stage, || (0..20).for_each(|room| stage.publish(&format!("nobody in {room}"), "3")));
        assert!(to_nobody <= 3, "{to_nobody} for 20 rooms with nobody");
        let batch: Vec<Value> =
            ["nobody", "room 0"].iter().map(|stream| json!({ "stream": stream, "data": "4" })).collect();
        let batch = handed(&stage, || stage.broadcaster().post(&Value::from(batch).to_string()));
        assert!((1..=2).contains(&batch), "{batch} for a batch");
        assert_eq!(clients[0].next_json()["message"], 4);
        for client in &mut clients {
            client.expect_nothing_before_pong();
        }
    }

    fn a_whisper_goes_to_the_shards_of_its_listeners(driver: Driver) {
        let stage = stage(driver);
        let mut clients = clients_everywhere(&stage);
        let (first, others) = clients.split_first_mut().expect("clients");
        let last = others.last_mut().expect("another client");
        listen(first, "two");
        listen(last, "two");
        let whisper = json!({ "command": "whisper", "identifier": identifier("two"), "data": 1 }).to_string();
        let handed = handed(&stage, || {
            first.send(&whisper);
            assert_eq!(last.next_json()["message"], 1);
            // The whisper may arrive before it is counted, but the pong comes after that.
            first.expect_nothing_before_pong();
        });
        assert!((1..=3).contains(&handed), "{handed}");
    }

    fn a_remote_disconnect_goes_to_every_shard(driver: Driver) {
        let stage = stage(driver);
        let payload = json!({ "identifiers": "{}", "reconnect": false });
        let command = json!({ "command": "disconnect", "payload": payload }).to_string();
        assert_eq!(handed(&stage, || stage.broadcaster().post(&command)), SHARDS as i64);
    }

    fn the_table_grows_with_the_streams_of_a_shard_and_nothing_is_missed(driver: Driver) {
        const ROOMS: usize = 2_500;
        let stage = stage(driver);
        let mut other = Cable::to(&stage.server).welcomed();
        listen(&mut other, "room 0");
        let mut client = Cable::to(&stage.server).welcomed();
        let at_first = table_bytes(&stage);
        for room in 0..ROOMS {
            client.command("subscribe", &identifier(&format!("room {room}")));
        }
        (0..ROOMS).for_each(|_| assert_eq!(client.next_json()["type"], "confirm_subscription"));
        until("the next table", || (table_bytes(&stage) == 5 * at_first).then_some(()));
        // The idle shards join with their ticks. It makes no difference to publications which table is used meanwhile.
        for room in (0..ROOMS).step_by(50) {
            stage.publish(&format!("room {room}"), &room.to_string());
            assert_eq!(client.next_json()["message"], room);
        }
        assert_eq!(other.next_json()["message"], 0);
        client.close();
        until("nobody is in the rooms", || (handed(&stage, || stage.publish("room 50", "1")) == 0).then_some(()));
    }

    fn a_room_is_forgotten_with_its_last_listener(driver: Driver) {
        let stage = stage(driver);
        let mut client = Cable::to(&stage.server).welcomed();
        listen(&mut client, "left");
        listen(&mut client, "ended");
        let to = |room: &str| handed(&stage, || stage.publish(room, "1"));
        assert_eq!((to("left"), to("ended")), (1, 1));
        assert_eq!((client.next_json()["message"].clone(), client.next_json()["message"].clone()), (1.into(), 1.into()));
        client.command("unsubscribe", &identifier("left"));
        until("nobody is in the room", || (to("left") == 0).then_some(()));
        client.close();
        until("nobody is there", || (to("ended") == 0).then_some(()));
    }
}
