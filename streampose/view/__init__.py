"""The web page that shows a stream: a server for browsers, which is itself a subscriber. Needs the extra [web]."""
