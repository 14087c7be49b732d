"""A small Python web app, as a team would write it without knowing the platform."""

import os

from flask import Flask, jsonify, request

app = Flask(__name__)


@app.get("/")
def page():
    names = ("APP", "ENV", "PROCESS", "RELEASE", "INSTANCE")
    return jsonify({name.lower(): os.environ.get(f"PLATFORM_{name}") for name in names})


@app.post("/echo")
def echo():
    return request.get_data()


@app.get("/healthz")
def healthy():
    return "ok\n"
