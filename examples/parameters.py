"""Parameters become options of the command line; constants and parameters cannot be changed.

python examples/parameters.py run --greeting Hi --names Ada,Grace --settings '{"loud": true}'
python examples/parameters.py run --help
"""

from metaflow import FlowSpec, JSONType, Parameter, step


class ParametersFlow(FlowSpec):
    """Greet some people."""

    # A plain class attribute is a constant: an artifact of the whole run.
    punctuation = "!"

    greeting = Parameter("greeting", default="Hello", help="What to say")
    names = Parameter("names", default="world", separator=",", help="Whom to greet, with commas")
    times = Parameter("times", default=1, help="How often")
    settings = Parameter("settings", type=JSONType, default='{"loud": false}', help="JSON")

    @step
    def start(self):
        self.lines = []
        for name in self.names:
            line = " ".join([self.greeting] * self.times + [name]) + self.punctuation
            self.lines.append(line.upper() if self.settings["loud"] else line)
        self.next(self.end)

    @step
    def end(self):
        print("\n".join(self.lines))


if __name__ == "__main__":
    ParametersFlow()
