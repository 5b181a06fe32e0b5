"""The smallest flow: it greets, and returns its greeting."""

from penstock import flow, get_logger


@flow
def hello_world(name: str = "World") -> str:
    """Greet somebody."""
    get_logger().info("About to greet %s.", name)
    greeting = f"Hello, {name}!"
    print(greeting)
    return greeting
