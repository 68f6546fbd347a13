"""The script of NVFLARE's clients: it returns the received model with a weight that depends on the client."""

import nvflare.client as flare


def main() -> None:
    """Answer every task until the job ends."""
    flare.init()
    number = int(flare.get_site_name().rpartition("-")[2])
    while flare.is_running():
        model = flare.receive()
        if model is not None:
            steps = {"NUM_STEPS_CURRENT_ROUND": 100 + number}
            flare.send(flare.FLModel(params=model.params, params_type="FULL", meta=steps))


if __name__ == "__main__":
    main()
