"""The client API over real runs: navigation, every exception, namespaces, tags, neighbours."""

from pathlib import Path

import pytest
from harness import client, run_flow, run_python

FLOW = """
import sys
from metaflow import *
from metaflow import FlowSpec, step

class ClientFlow(FlowSpec):
    p = Parameter("p", default=3)

    @step
    def start(self):
        self.items = ["a", "b"]
        print("said")
        self.next(self.left, self.right)

    @step
    def left(self):
        self.next(self.each, foreach="items")

    @step
    def each(self):
        self.x = self.input
        self.next(self.gather)

    @step
    def gather(self, inputs):
        self.xs = [i.x for i in inputs]
        self.next(self.join)

    @step
    def right(self):
        self._hidden = 1
        self.next(self.join)

    @step
    def join(self, inputs):
        self.xs = inputs.gather.xs
        self.next(self.end)

    @step
    def end(self):
        print(current.run.id == current.run_id, current.task.pathspec == current.pathspec)
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run that the tests of this module only read."""
    folder = tmp_path_factory.mktemp("client")
    result = run_flow(folder, FLOW, "run", "--tag", "blue").ok()
    assert "True True" in result.stdout
    return folder


def test_navigation(done: Path) -> None:
    lines = client(
        done,
        """
        flow = Metaflow()['ClientFlow']; run = flow.latest_run
        print([f.id for f in Metaflow()], run, run.parent, flow.parent)
        print([s.id for s in run], '_parameters' in run, 'each' in run, 'nothing' in run)
        print(sorted(int(t.id) for t in run['each']), run['each'].task.parent)
        task = run['right'].task
        print([a.id for a in task], '_hidden' in task, task['_hidden'].data)
        print(run.data.xs, run.data.p, run['_parameters'].task['p'].data)
        print(task.path_components, task['p'].pathspec, task.artifacts.p.data)
        print(run.successful, run.finished, run.state, run.cause, run.code, run.trigger)
        print(run.end_task.pathspec, run.finished_at >= run.created_at, flow.latest_successful_run)
        print(sorted(t.index for t in run['each']), run['end'].task.index)
        print(task.runtime_name, task.current_attempt, task.environment_info['type'])
        """,
    )
    assert lines[0] == "['ClientFlow'] Run('ClientFlow/1') Flow('ClientFlow') None"
    assert lines[1].startswith("['end', 'join', ") and lines[1].endswith("'start'] True True False")
    assert lines[2].endswith("Step('ClientFlow/1/each')")
    assert lines[3].startswith("[") and "'_hidden'" not in lines[3] and lines[3].endswith("True 1")
    assert lines[4] == "['a', 'b'] 3 3"
    assert lines[5].startswith("['ClientFlow', '1', 'right', '3'] ClientFlow/1/right/3/p 3")
    assert lines[6] == "True True done None None None"
    assert lines[7].endswith("True Run('ClientFlow/1')")
    assert lines[8] == "[0, 1] None"
    assert lines[9] == "dev 0 local"


def test_neighbours(done: Path) -> None:
    lines = client(
        done,
        """
        run = Run('ClientFlow/1')
        def around(task):
            names = [sorted(t.path_components[2] + str(t.index) for t in group)
                     for group in (task.parent_tasks, task.child_tasks)]
            return names
        for name in ('start', 'left', 'each', 'gather', 'join', 'end'):
            print(name, *around(run[name].task))
        print([s.id for s in run['join'].parent_steps], [s.id for s in run['start'].child_steps])
        print(all(p.startswith('ClientFlow/1/') for p in run['join'].task.parent_task_pathspecs))
        """,
    )
    assert lines == [
        "start [] ['leftNone', 'rightNone']",
        "left ['startNone'] ['each0', 'each1']",
        "each ['leftNone'] ['gatherNone']",
        "gather ['each0', 'each1'] ['joinNone']",
        "join ['gatherNone', 'rightNone'] ['endNone']",
        "end ['joinNone'] []",
        "['gather', 'right'] ['left', 'right']",
        "True",
    ]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("Flow('NoFlow')", "MetaflowNotFound"),
        ("Flow('A/1')", "MetaflowInvalidPathspec"),
        ("Run('ClientFlow')", "MetaflowInvalidPathspec"),
        ("Run('ClientFlow/99')", "MetaflowNotFound"),
        ("Run('ClientFlow/x')", "MetaflowNotFound"),
        ("Step('ClientFlow/1/nothing')", "MetaflowNotFound"),
        ("Task('ClientFlow/1/start')", "MetaflowInvalidPathspec"),
        ("Task('ClientFlow/1/start/99')", "MetaflowNotFound"),
        ("Task('ClientFlow/1/end/1')", "MetaflowNotFound"),
        ("Task('ClientFlow/1/start/x')", "MetaflowNotFound"),
        ("Task('ClientFlow/1/start/1', attempt=1)", "MetaflowNotFound"),
        ("Task('ClientFlow/1/start/1', attempt=-1)", "MetaflowNotFound"),
        ("Task('ClientFlow/1/start/1', attempt=6)", "MetaflowNotFound"),
        ("Task('ClientFlow/1/start/1', attempt='0')", "MetaflowNotFound"),
        ("Run('ClientFlow/1', attempt=0)", "MetaflowNotFound"),
        ("DataArtifact('ClientFlow/1/start/1/nothing')", "MetaflowNotFound"),
        ("Run('ClientFlow/1')['nothing']", "KeyError"),
        ("Flow('ClientFlow')['99']", "KeyError"),
        ("Task('ClientFlow/1/start/1')['nothing']", "KeyError"),
        ("Task('ClientFlow/1/start/1').data.nothing", "AttributeError"),
        ("namespace('user:other') and Run('ClientFlow/1')", "MetaflowNamespaceMismatch"),
        ("namespace('user:other') and Flow('ClientFlow')", "MetaflowNamespaceMismatch"),
        ("namespace('x') and Task('ClientFlow/1/start/1')", "MetaflowNamespaceMismatch"),
        ("len(Run('ClientFlow/1'))", "TypeError"),
    ],
)
def test_exceptions(done: Path, call: str, error: str) -> None:
    lines = client(
        done,
        f"""
        try:
            {call}
            print("no error")
        except Exception as error:
            print(type(error).__name__)
        """,
    )
    assert lines == [error]


def test_namespaces(done: Path) -> None:
    lines = client(
        done,
        """
        from metaflow import get_namespace, default_namespace
        print(get_namespace(), namespace('blue'), get_namespace(), Flow('ClientFlow').latest_run)
        print(namespace(None), len(list(Flow('ClientFlow'))), default_namespace())
        namespace('nobody'); print(list(Metaflow()), 'ClientFlow' in Metaflow())
        """,
    )
    assert lines == [
        "user:tester blue blue Run('ClientFlow/1')",
        "None 1 user:tester",
        "[] False",
    ]


def test_providers(done: Path) -> None:
    result = run_python(
        Path("/tmp"),
        f"""
        from metaflow import Flow, get_metadata, metadata, default_metadata, namespace
        namespace(None)
        print(metadata('{done}'), metadata('local@{done}') == get_metadata())
        print(Flow('ClientFlow').latest_run.id)
        for bad in ('local@/proc', 'nonsense@/tmp', 'service@http://localhost'):
            try:
                metadata(bad)
                print('no error')
            except ValueError:
                print('ValueError')
        """,
    ).ok()
    assert result.stdout.splitlines() == [
        f"local@{done} True",
        "1",
        "ValueError",
        "ValueError",
        "ValueError",
    ]


def test_logs_metadata_and_artifacts(done: Path) -> None:
    lines = client(
        done,
        """
        task = Run('ClientFlow/1')['start'].task
        ((when, line),) = task.loglines('stdout')
        print(repr(task.stdout), task.stdout_size, repr(task.stderr), line, when.tzinfo)
        names = set(task.metadata_dict)
        print({'attempt', 'attempt_ok', 'python_version', 'origin-run-id'} <= names, names)
        print(task.metadata_dict['attempt_ok'], task.metadata[0].task is task)
        artifact = task['items']
        print(artifact.data, artifact.size > 0, len(artifact.sha), artifact.finished_at.year > 2000)
        print(repr(task.data), 'items' in task.data, dir(task.data))
        """,
    )
    assert lines[0] == r"'said\n' 5 '' said None"
    assert lines[1].startswith("True"), lines[1]
    assert lines[2] == "True True"
    assert lines[3].startswith("['a', 'b'] True ") and lines[3].endswith("True")
    assert "items" in lines[4] and " True " in lines[4]


def test_pickling_objects(done: Path) -> None:
    lines = client(
        done,
        """
        import pickle
        run = Run('ClientFlow/1'); task = Task('ClientFlow/1/start/1', attempt=0)
        things = [Flow('ClientFlow'), run, run['start'], task, task['items']]
        print(pickle.loads(pickle.dumps(things)) == things, pickle.loads(pickle.dumps(task)))
        """,
    )
    assert lines == ["True Task('ClientFlow/1/start/1', attempt=0)"]


def test_tags_through_the_client(folder: Path) -> None:
    run_flow(folder, FLOW, "run").ok()
    lines = client(
        folder,
        """
        from metaflow.exception import MetaflowTaggingError
        run = Run('ClientFlow/1')
        run.add_tag('one'); run.add_tags(['two', 'three']); run.remove_tag('two')
        run.replace_tag('three', 'four'); run.remove_tags(['absent']); run.add_tag('user:tester')
        print(sorted(run.user_tags), run.tags == run.user_tags | run.system_tags)
        print(sorted(run['start'].task['p'].user_tags))
        print([r.id for r in Flow('ClientFlow').runs('one', 'four')])
        print(list(Flow('ClientFlow').runs('two')))
        def refused(change):
            try:
                change()
                return 'accepted'
            except MetaflowTaggingError as error:
                return 'refused'
        print(refused(lambda: run.add_tag('')), refused(lambda: run.add_tag('x' * 501)))
        print(refused(lambda: run.add_tags([f't{i}' for i in range(49)])))
        print(refused(lambda: run.remove_tag('user:tester')), refused(lambda: run.add_tag(5)))
        print(refused(lambda: run.add_tags([f't{i}' for i in range(48)])), len(run.user_tags))
        """,
    )
    assert lines == [
        "['four', 'one'] True",
        "['four', 'one']",
        "['1']",
        "[]",
        "refused refused",
        "refused",
        "refused refused",
        "accepted 50",
    ]


def test_runs_that_did_not_end_well(folder: Path) -> None:
    source = FLOW.replace("self.xs = inputs.gather.xs", "raise OSError('no disk')")
    run_flow(folder, source, "run").exited(1)
    lines = client(
        folder,
        """
        flow = Flow('ClientFlow'); run = flow.latest_run
        print(flow.latest_successful_run, run.state, run.end_task, run.finished_at, run.data)
        print('join' in run.cause, run['join'].task.exception.exception)
        """,
    )
    assert lines[0] == "None failed None None None"
    assert lines[1] == "True no disk"


def test_nothing_has_run_yet(folder: Path) -> None:
    assert client(folder, "print(list(Metaflow()))") == ["[]"]
    assert not (folder / ".metaflow").exists()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("Run('ClientFlow/9')", "MetaflowNotFound: run `ClientFlow/9` does not exist in `{}`"),
        ("Runner('flow.py')", "NotInThisVersion: `Runner` is not in this version of ferroflow: "),
        ("S3(s3root='x').get('y')", "MetaflowS3URLException: `x` is not an address of S3: "),
        ("namespace(None) or Flow('ClientFlow')['9']", "KeyError: '9'"),
    ],
)
def test_an_uncaught_exception_shows_the_users_line_only(
    done: Path, call: str, sentence: str
) -> None:
    script = done / "script.py"
    script.write_text(f"from metaflow import *\n\ndef look():\n    {call}\n\nlook()\n")
    result = run_flow(done, script).exited(1)
    assert sentence.format(done / ".metaflow") in result.stderr.splitlines()[-1]
    files = [line for line in result.stderr.splitlines() if line.startswith("  File")]
    assert files == [
        f'  File "{script}", line 6, in <module>',
        f'  File "{script}", line 4, in look',
    ]


def test_a_hook_of_the_users_is_kept(done: Path) -> None:
    result = run_python(
        done,
        """
        import sys
        sys.excepthook = lambda kind, error, trace: print("mine", kind.__name__)
        from metaflow import Run
        Run("ClientFlow/9")
        """,
    ).exited(1)
    assert (result.stdout, result.stderr) == ("mine MetaflowNotFound\n", "")
