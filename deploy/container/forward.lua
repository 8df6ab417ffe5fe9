-- Orthanc passes every X-ray that it stores on to the node, and nothing else: the node accepts no other classes,
-- and results of the node that are stored here are not sent back. An X-ray that the node was not there for is not
-- sent again; see docs/how-to/containers.md.

local node = 'pneumoscope' -- in DicomModalities of Orthanc

local xrays = {
  ['1.2.840.10008.5.1.4.1.1.1'] = true, -- Computed Radiography
  ['1.2.840.10008.5.1.4.1.1.1.1'] = true, -- Digital X-Ray, for presentation
  ['1.2.840.10008.5.1.4.1.1.1.1.1'] = true -- Digital X-Ray, for processing
}
local secondaryCapture = '1.2.840.10008.5.1.4.1.1.7'
local radiography = { CR = true, DX = true, RG = true }

-- A film that was scanned is a Secondary Capture of such a modality.
local function isFilm(tags)
  return tags.SOPClassUID == secondaryCapture and radiography[tags.Modality or '']
    and tags.Manufacturer ~= 'Pneumoscope'
end

function OnStoredInstance(instance, tags, metadata, origin)
  if xrays[tags.SOPClassUID or ''] or isFilm(tags) then
    SendToModality(instance, node)
  end
end
