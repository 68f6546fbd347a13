"""Flower's client app: it returns the received model with a weight that depends on the client."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp


def train(message: Message, context: Context) -> Message:
    """Reply with the received arrays."""
    metrics = MetricRecord({"num-examples": 100 + int(context.node_config["partition-id"])})
    return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)


app = ClientApp()
app.train()(train)
