"""Flower's client app: it returns the model that it was sent, with a weight of its own."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp


def train(message: Message, context: Context) -> Message:
    """Answer with the arrays as they came."""
    metrics = MetricRecord({"num-examples": 100 + int(context.node_config["partition-id"])})
    return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)


app = ClientApp()
app.train()(train)
