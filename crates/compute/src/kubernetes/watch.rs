//! The one watch of a run's pods in a namespace: lists, then follows changes, and does so again
//! whenever the server ends the watch, forgets its version or does not answer.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::WatchEvent;
use tokio::time::Instant;

use super::api::{ApiFault, Cluster};
use super::pod::PodView;

/// Silence after which a watch is taken for dead; servers send a bookmark every minute.
const SILENCE: Duration = Duration::from_secs(100);
/// Trouble that passes sooner is not worth a word.
const WORTH_SAYING: Duration = Duration::from_secs(3);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a watch tells.
#[derive(Debug)]
pub enum PodNews {
    /// All pods there are, at the beginning and after each gap.
    All {
        namespace: String,
        pods: Vec<PodView>,
    },
    Changed(PodView),
    /// With its last state.
    Gone(PodView),
    /// The server has not answered for a while.
    Silent(String),
    AnswersAgain,
}

/// Follows the pods until `tell` says that nobody listens.
pub async fn follow(cluster: Cluster, namespace: String, selector: String, tell: impl Fn(PodNews) -> bool) {
    let mut trouble = Trouble::default();
    let mut version = String::new();
    loop {
        let round = follow_once(&cluster, &namespace, &selector, &mut version, &mut trouble, &tell).await;
        match round {
            Round::Over => return,
            Round::Ended => trouble.passed(&tell),
            Round::Failed(ApiFault::Gone(_)) => version.clear(),
            Round::Failed(fault) => {
                // Changes may have been missed; a list tells what is there.
                version.clear();
                if !trouble.go_on(&fault, &tell).await {
                    return;
                }
            }
        }
    }
}

enum Round {
    /// The server ended the watch; it can be taken up where it was.
    Ended,
    Failed(ApiFault),
    Over,
}

async fn follow_once(
    cluster: &Cluster,
    namespace: &str,
    selector: &str,
    version: &mut String,
    trouble: &mut Trouble,
    tell: &impl Fn(PodNews) -> bool,
) -> Round {
    if version.is_empty() {
        match cluster.list_pods(namespace, selector).await {
            Ok((pods, at)) => {
                *version = at;
                let pods = pods.iter().map(PodView::of).collect();
                trouble.passed(tell);
                if !tell(PodNews::All { namespace: namespace.to_owned(), pods }) {
                    return Round::Over;
                }
            }
            Err(fault) => return Round::Failed(fault),
        }
    }
    let stream = match cluster.watch_pods(namespace, selector, version).await {
        Ok(stream) => stream,
        Err(fault) => return Round::Failed(fault),
    };
    let mut stream = pin!(stream);
    loop {
        let event = match tokio::time::timeout(SILENCE, stream.next()).await {
            Ok(Some(Ok(event))) => event,
            Ok(Some(Err(fault))) => return Round::Failed(fault),
            Ok(None) => return Round::Ended,
            Err(_) => return Round::Failed(ApiFault::Unavailable("the watch fell silent".to_owned())),
        };
        let (pod, gone) = match event {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => (pod, false),
            WatchEvent::Deleted(pod) => (pod, true),
            WatchEvent::Bookmark(bookmark) => {
                *version = bookmark.metadata.resource_version;
                continue;
            }
            WatchEvent::Error(status) => return Round::Failed(kube::Error::Api(status).into()),
        };
        if let Some(at) = pod["metadata"]["resourceVersion"].as_str() {
            at.clone_into(version);
        }
        let view = PodView::of(&pod);
        let news = if gone { PodNews::Gone(view) } else { PodNews::Changed(view) };
        if !tell(news) {
            return Round::Over;
        }
    }
}

/// A server that does not answer.
#[derive(Default)]
struct Trouble {
    since: Option<Instant>,
    said: bool,
    pause: Duration,
}

impl Trouble {
    fn passed(&mut self, tell: &impl Fn(PodNews) -> bool) {
        if self.said {
            tell(PodNews::AnswersAgain);
        }
        *self = Self::default();
    }

    /// Waits before the next try; `false` when nobody listens any more.
    async fn go_on(&mut self, fault: &ApiFault, tell: &impl Fn(PodNews) -> bool) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= WORTH_SAYING && !self.said {
            self.said = true;
            if !tell(PodNews::Silent(fault.to_string())) {
                return false;
            }
        }
        self.pause = (self.pause * 2).clamp(Duration::from_millis(200), LONGEST_PAUSE);
        tokio::time::sleep(self.pause).await;
        true
    }
}
