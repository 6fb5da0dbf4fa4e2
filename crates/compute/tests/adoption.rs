//! Layers of other runs: what they tell comes under this run's ids, and orders go
//! out under theirs.

use std::sync::{Arc, Mutex};

use ferroflow_compute::adoption::{AdoptedEvents, Adopter};
use ferroflow_compute::routing::RoutingLayer;
use ferroflow_core::id::{AttemptId, RunId, StepName, TaskId};
use ferroflow_core::port::{
    Adoption, ComputeLayer, EventSink, Later, LayerEvent, ObjectError, RemoteContainer, RemoteTasks, StopSignal,
};
use ferroflow_core::task::{AttemptReport, Cause, CauseKind, TaskLaunch};
use ferroflow_testkit::layer::RecordingLayer;
use ferroflow_testkit::world::succeeded;

fn id(task: u64) -> AttemptId {
    AttemptId { task: TaskId(task), attempt: 0 }
}

/// The store: it has the pack of one attempt.
struct Packs(AttemptId);

impl RemoteTasks for Packs {
    fn container<'a>(&'a self, _: &'a TaskLaunch, _: &'a str) -> Later<'a, Result<RemoteContainer, ObjectError>> {
        Box::pin(async { Err(ObjectError::NotFound("nobody asks for one".to_owned())) })
    }
    fn follow(&self, _: AttemptId) {}
    fn drained(&self, _: AttemptId) -> Later<'_, ()> {
        Box::pin(async {})
    }
    fn kept_report(&self, id: AttemptId) -> Later<'_, Option<AttemptReport>> {
        Box::pin(async move { (id == self.0).then(|| succeeded(&["join"])) })
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<LayerEvent>>);

impl EventSink for Heard {
    fn send(&self, event: LayerEvent) {
        self.0.lock().expect("lock").push(event);
    }
}

struct Scene {
    heard: Arc<Heard>,
    theirs: Arc<RecordingLayer>,
    routing: RoutingLayer,
}

impl Scene {
    fn new() -> Self {
        let heard = Arc::new(Heard::default());
        let events = AdoptedEvents::new(heard.clone());
        let theirs = Arc::new(RecordingLayer::new(events.clone()).outliving());
        let adopter: Arc<dyn ComputeLayer> = Arc::new(Adopter::new(theirs.clone(), Arc::new(Packs(id(3))), events));
        let local = Arc::new(RecordingLayer::new(heard.clone()));
        let routing = RoutingLayer::new(local, Vec::new()).adopting(vec![(RunId::from("1"), adopter)]);
        Self { heard, theirs, routing }
    }

    fn adopt(&self, ours: Option<u64>, theirs: u64) -> bool {
        self.routing.adopt(Adoption {
            id: ours.map(id),
            step: StepName::from("train"),
            run: RunId::from("1"),
            attempt: id(theirs),
            layer: "recording".to_owned(),
        })
    }

    fn heard(&self) -> Vec<LayerEvent> {
        self.heard.0.lock().expect("lock").clone()
    }
}

#[tokio::test]
async fn events_and_stops_are_translated() {
    let scene = Scene::new();
    assert!(scene.adopt(Some(12), 2) && scene.adopt(Some(13), 4));
    scene.theirs.start(id(2), 7);
    scene.theirs.finish(id(2), succeeded(&["join"]));
    scene.routing.stop(&[id(13), id(4)], StopSignal::Terminate);
    assert_eq!(scene.theirs.stops(), [(vec![id(4)], StopSignal::Terminate)]);
    assert!(matches!(
        &scene.heard()[..],
        [LayerEvent::Started { id: first, .. }, LayerEvent::Finished { id: second, .. }, LayerEvent::Lost { id: third, cause }]
            if (*first, *second, *third, cause.kind) == (id(12), id(12), id(13), CauseKind::Cancelled)
    ));
}

#[tokio::test]
async fn what_is_gone_counts_as_done_if_its_pack_says_so() {
    let scene = Scene::new();
    scene.adopt(Some(13), 3);
    scene.adopt(Some(14), 4);
    let gone = Cause::new(CauseKind::LayerError, "nothing of it is left");
    scene.theirs.lose(id(3), gone.clone());
    scene.theirs.lose(id(4), gone.clone());
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let finished = LayerEvent::Finished { id: id(13), report: succeeded(&["join"]) };
    assert_eq!(scene.heard(), [finished, LayerEvent::Lost { id: id(14), cause: gone }]);
}

#[tokio::test]
async fn what_is_of_no_use_is_killed_in_silence() {
    let scene = Scene::new();
    assert!(scene.adopt(None, 2));
    assert_eq!(scene.theirs.stops(), [(vec![id(2)], StopSignal::Kill)]);
    assert_eq!(scene.heard(), []);
}

#[tokio::test]
async fn other_runs_and_layers_are_nobodys() {
    let scene = Scene::new();
    let adoption = Adoption {
        id: Some(id(9)),
        step: StepName::from("train"),
        run: RunId::from("1"),
        attempt: id(2),
        layer: "batch".to_owned(),
    };
    assert!(!scene.routing.adopt(adoption.clone()));
    assert!(!scene.routing.adopt(Adoption { run: RunId::from("5"), layer: "recording".to_owned(), ..adoption }));
    scene.routing.let_go().await;
    assert!(scene.theirs.has_let_go() && !scene.theirs.is_shut_down());
}
