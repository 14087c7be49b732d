// One page, by express: enough to see that the modules of the image are whole.
const express = require("express");

const app = express();
app.get("/", (request, response) => response.send("node " + process.version + "\n"));
app.listen(process.env.PORT || 3000, "::");
