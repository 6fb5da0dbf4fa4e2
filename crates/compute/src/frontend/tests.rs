//! Tests of the front-end connection, with the other side played in this process.

use serde_json::json;
use std::collections::BTreeMap;

use super::*;

/// A process that does not exist: numbers end below it.
const NOBODY: u32 = 1_073_741_823;

fn hello(protocol: u32) -> Value {
    json!({
        "protocol": protocol, "language": "python", "language_version": "3.11.7", "executable": "/usr/bin/python3",
        "script": "flow.py", "arguments": ["run"], "pid": NOBODY,
        "flow": {"name": "F", "file": "/f/flow.py", "steps": []}
    })
}

struct Speaker {
    sender: FrameSender,
    receiver: FrameReceiver,
}

fn pair() -> (StdUnixStream, Speaker) {
    let (engine_end, front_end) = StdUnixStream::pair().expect("a socket pair");
    front_end.set_nonblocking(true).expect("a socket");
    let (sender, receiver) = split(UnixStream::from_std(front_end).expect("a socket"));
    (engine_end, Speaker { sender, receiver })
}

impl Speaker {
    fn say(&self, value: &Value) {
        self.sender.send(OutgoingFrame::new(value, Vec::new()).expect("a small message"));
    }

    async fn hear(&mut self) -> Value {
        self.receiver.next().await.expect("a good frame").expect("a frame")
    }
}

fn convert(user: &str) -> Request {
    Request::Convert { id: 0, given: BTreeMap::new(), user: user.to_owned() }
}

async fn connected() -> (FrontEnd, Speaker) {
    let (socket, speaker) = pair();
    speaker.say(&hello(PROTOCOL_VERSION));
    let (front_end, hello) = FrontEnd::connect(socket.into()).await.expect("a good hello");
    assert_eq!((hello.pid, hello.flow.name.as_str(), front_end.pid()), (NOBODY, "F", NOBODY));
    (front_end, speaker)
}

#[tokio::test]
async fn replies_find_their_requests_in_any_order() {
    let (front_end, mut speaker) = connected().await;
    let (first, second) = (front_end.clone(), front_end.clone());
    let first = tokio::spawn(async move { first.request(convert("ada")).await });
    let asked_first = speaker.hear().await;
    let second = tokio::spawn(async move { second.request(convert("bob")).await });
    let asked_second = speaker.hear().await;
    assert_eq!((&asked_first["user"], &asked_second["user"]), (&json!("ada"), &json!("bob")));
    speaker.say(&json!({"id": asked_second["id"], "ok": "for bob"}));
    speaker.say(&json!({"id": 777, "ok": "for nobody"}));
    speaker.say(&json!({"id": asked_first["id"], "ok": "for ada"}));
    let reply = |joined: Result<Result<Reply, FrontEndFault>, _>| joined.expect("no panic").expect("a reply").ok;
    assert_eq!(reply(first.await), Some(json!("for ada")));
    assert_eq!(reply(second.await), Some(json!("for bob")));
}

#[tokio::test]
async fn a_front_end_that_goes_wakes_requests_and_watchers() {
    let (front_end, mut speaker) = connected().await;
    let asking = front_end.clone();
    let asking = tokio::spawn(async move { asking.request(convert("ada")).await });
    speaker.hear().await;
    speaker.sender.close();
    let error = asking.await.expect("no panic").expect_err("no reply");
    assert_eq!(error.to_string(), "the flow's process (pid 1073741823) is gone");
    assert_eq!(front_end.closed().await, "the flow's process (pid 1073741823) is gone");
    assert!(front_end.is_closed());
    let error = front_end.request(convert("eve")).await.expect_err("nobody there");
    assert_eq!(error.to_string(), "the flow's process (pid 1073741823) is gone");
}

#[tokio::test]
async fn closing_reaches_the_front_end_although_clones_live() {
    let (front_end, mut speaker) = connected().await;
    let clone = front_end.clone();
    front_end.hang_up();
    assert!(speaker.receiver.next::<Value>().await.expect("a clean end").is_none());
    clone.closed().await;
}

#[tokio::test]
async fn another_version_is_refused_whatever_else_its_hello_holds() {
    let (socket, speaker) = pair();
    speaker.say(&json!({"protocol": 7, "novelty": true}));
    let error = FrontEnd::connect_within(socket.into(), HELLO_DEADLINE).await.err().expect("refused");
    assert_eq!(
        error.to_string(),
        "the flow's process speaks version 7 of the front-end protocol, this engine speaks version 1: the language's \
         package and the `metaflow` command come from different releases; install the same release of both"
    );
}

#[tokio::test]
async fn a_silent_and_an_ended_process_are_told_apart() {
    let (socket, speaker) = pair();
    let error = FrontEnd::connect_within(socket.into(), Duration::from_millis(20)).await.err().expect("refused");
    assert!(matches!(error, FrontEndFault::NoHello(_)));
    drop(speaker);
    let (socket, speaker) = pair();
    speaker.sender.close();
    let error = FrontEnd::connect_within(socket.into(), HELLO_DEADLINE).await.err().expect("refused");
    assert_eq!(error.to_string(), "the flow's process ended before it described its flow");
}

#[tokio::test]
async fn a_descriptor_that_is_no_socket_is_refused() {
    let file = OwnedFd::from(std::fs::File::open("/dev/null").expect("/dev/null"));
    let number = file.as_raw_fd();
    let error = FrontEnd::connect(file).await.err().expect("refused").to_string();
    assert!(error.starts_with(&format!("descriptor {number} (`--socket-fd`) is not a connected socket: ")), "{error}");
    assert!(error.ends_with("(`python flow.py run`), not by hand"), "{error}");
}
